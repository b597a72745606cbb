// SPDX-License-Identifier: GPL-2.0
/* send() and recv() before there is a connection. */
#include "repro.h"

static volatile int signals;

static void count(int signal)
{
	(void)signal;
	signals++;
}

static void new(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	char data = 0;

	signal(SIGPIPE, count);
	repro_add(result, repro_value(send(client, &data, 1, 0)));
	repro_add(result, repro_value(signals));
	repro_add(result, repro_value(recv(client, &data, 1, 0)));
}

static void connecting(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));
	struct sockaddr_in address;
	char data = 0;

	repro_silent(&address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_value(send(client, &data, 1, MSG_NOSIGNAL)));
	repro_add(result, repro_value(recv(client, &data, 1, 0)));
}

/* it waits for the connection, and goes over it */
static void waits(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));
	struct sockaddr_in address;
	int server, accepted;
	char data = 0;

	server = repro_listen(protocol, &address);
	repro_connect(client, &address);
	NEED(fcntl(client, F_SETFL, 0));
	repro_add(result, repro_value(send(client, &data, 1, MSG_NOSIGNAL)));
	accepted = NEED(accept(server, NULL, NULL));
	repro_add(result, repro_value(recv(accepted, &data, 1, 0)));
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
}

static const struct repro_case cases[] = {
	{ "send() on a new socket, signals, recv()", "EPIPE, 1, ENOTCONN", NULL, new, 0 },
	{ "connect(), send(), recv() without blocking", "EINPROGRESS, EAGAIN, EAGAIN", NULL, connecting, 0 },
	{ "connect() without blocking, then send() that blocks", "1, 1", NULL, waits, 0 },
};

REPRO_MAIN(cases)
