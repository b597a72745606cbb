// SPDX-License-Identifier: GPL-2.0
/* shutdown() of a listener while a thread waits in accept(), or in poll(). */
#include "repro.h"

static int listener;
static int how;

static void *stopper(void *result)
{
	usleep(300000);
	sprintf(result, "shutdown() %s", repro_value(shutdown(listener, how)));
	return NULL;
}

static void stop(int protocol, int shut, char *result)
{
	struct sockaddr_in address;
	pthread_t thread;
	char accepted[32];
	int client;

	how = shut;
	listener = repro_listen(protocol, &address);
	pthread_create(&thread, NULL, stopper, result);
	strcpy(accepted, repro_value(accept(listener, NULL, NULL)));
	pthread_join(thread, NULL);
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	sprintf(result + strlen(result), ", accept() %s", accepted);
	sprintf(result + strlen(result), ", connect() %s",
		repro_value(connect(client, (struct sockaddr *)&address, sizeof(address))));
}

static void read_and_write(int protocol, char *result)
{
	stop(protocol, SHUT_RDWR, result);
}

static void read_alone(int protocol, char *result)
{
	stop(protocol, SHUT_RD, result);
}

/* it goes on */
static void write_alone(int protocol, char *result)
{
	struct sockaddr_in address;
	int client;

	listener = repro_listen(protocol, &address);
	sprintf(result, "shutdown() %s", repro_value(shutdown(listener, SHUT_WR)));
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	sprintf(result + strlen(result), ", connect() %s",
		repro_value(connect(client, (struct sockaddr *)&address, sizeof(address))));
	sprintf(result + strlen(result), ", accept() %s", accept(listener, NULL, NULL) < 0 ? "fails" : "a socket");
}

static void polled(int protocol, char *result)
{
	struct pollfd acceptable = { .events = POLLIN };
	struct sockaddr_in address;
	pthread_t thread;
	char text[REPRO_RESULT];

	how = SHUT_RDWR;
	acceptable.fd = listener = repro_listen(protocol, &address);
	pthread_create(&thread, NULL, stopper, text);
	sprintf(result, "poll() %s", repro_value(poll(&acceptable, 1, 3000)));
	sprintf(result + strlen(result), "%s", acceptable.revents & POLLHUP ? ", POLLHUP" : "");
	pthread_join(thread, NULL);
}

/* connections that nobody has accepted end with it */
static void not_accepted(int protocol, char *result)
{
	struct sockaddr_in address;
	int client;
	char data;

	listener = repro_listen(protocol, &address);
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(connect(client, (struct sockaddr *)&address, sizeof(address)));
	usleep(300000);
	sprintf(result, "shutdown() %s", repro_value(shutdown(listener, SHUT_RDWR)));
	sprintf(result + strlen(result), ", recv() %s", recv(client, &data, 1, 0) > 0 ? "has data" : "ends");
}

static const struct repro_case cases[] = {
	{ "shutdown(SHUT_RDWR) of a listener with a thread in accept(), then a client",
	  "shutdown() 0, accept() EINVAL, connect() ECONNREFUSED", NULL, read_and_write, 0 },
	{ "the same with SHUT_RD", "shutdown() 0, accept() EINVAL, connect() ECONNREFUSED", NULL, read_alone, 0 },
	{ "shutdown(SHUT_WR) of a listener, then a client", "shutdown() 0, connect() 0, accept() a socket", NULL,
	  write_alone, 0 },
	{ "shutdown(SHUT_RDWR) of a listener with a thread in poll()", "poll() 1, POLLHUP", NULL, polled, 0 },
	{ "shutdown(SHUT_RDWR) of a listener with a connection that was not accepted",
	  "shutdown() 0, recv() ends", NULL, not_accepted, 0 },
};

REPRO_MAIN(cases)
