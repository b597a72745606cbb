// SPDX-License-Identifier: GPL-2.0
/* A signal while connect() waits. The server does not accept, and the signals come one after the other. */
#include "repro.h"

#include <sys/time.h>

#define ROUNDS 50

static void nothing(int signal)
{
	(void)signal;
}

static void signals(int flags, int microseconds)
{
	struct itimerval timer = { .it_interval.tv_usec = microseconds, .it_value.tv_usec = microseconds };
	struct sigaction action = { .sa_handler = nothing, .sa_flags = flags };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int connection(int client, struct sockaddr_in *address)
{
	return connect(client, (struct sockaddr *)address, sizeof(*address));
}

/* what came out of each so far */
static void add(char *result, const char *next)
{
	if (!*result)
		strcpy(result, next);
	else if (strcmp(result, next))
		sprintf(result + strlen(result), ", then %s", next);
}

static void works(int protocol, int client, int listener)
{
	int server = NEED(accept(listener, NULL, NULL));
	char data;

	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
	NEED(send(client, "x", 1, 0));
	NEED(recv(server, &data, 1, 0));
	close(server);
}

static void restarted_to(int server, int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(server, &address), round;

	for (round = 0; round < ROUNDS; round++) {
		int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));

		signals(SA_RESTART, 500);
		add(result, repro_value(connection(client, &address)));
		signals(SA_RESTART, 0);
		if (strcmp(result, "0"))
			break;
		works(server, client, listener);
		close(client);
	}
}

static void restarted(int protocol, char *result)
{
	restarted_to(protocol, protocol, result);
}

/* the handshake of SMC takes long: the server's system does not answer before a thread of it has run */
static void not_restarted(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(protocol, &address), round;

	for (round = 0; round < ROUNDS; round++) {
		int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
		int tries = 0, done;

		signals(0, 500);
		do
			done = connection(client, &address);
		while (done < 0 && errno == EINTR && tries++ < 1000);
		signals(0, 0);
		/* connected meanwhile */
		if (done < 0 && errno == EISCONN)
			done = 0;
		add(result, repro_value(done));
		if (strcmp(result, "0"))
			break;
		works(protocol, client, listener);
		close(client);
	}
}

/* a server without SMC */
static void fallen_back(int protocol, char *result)
{
	restarted_to(IPPROTO_TCP, protocol, result);
}

static void waits_on(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(protocol, &address);
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	NEED(fcntl(client, F_SETFL, O_NONBLOCK));
	connection(client, &address);
	NEED(fcntl(client, F_SETFL, 0));
	sprintf(result, "%s", repro_value(connection(client, &address)));
	sprintf(result + strlen(result), ", then %s", repro_value(connection(client, &address)));
	works(protocol, client, listener);
}

static const struct repro_case cases[] = {
	{ "connect() with a signal every 0.5 ms and SA_RESTART", "0", NULL, restarted, 60 },
	{ "connect(), again after each EINTR, with a signal every 0.5 ms", "0", NULL, not_restarted, 60 },
	{ "connect() to a server without SMC with a signal every 0.5 ms and SA_RESTART", "0", NULL, fallen_back, 60 },
	{ "connect() that blocks after one that did not, then one more", "0, then EISCONN", NULL, waits_on, 0 },
};

REPRO_MAIN(cases)
