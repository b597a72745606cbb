// SPDX-License-Identifier: GPL-2.0
/* A socket is used again after its connect() was refused. */
#include "repro.h"

static void works(int protocol, int client, struct sockaddr_in *address, char *result)
{
	int server = repro_listen(protocol, address), accepted;
	char data;

	repro_add(result, repro_value(repro_connect(client, address)));
	accepted = accept4(server, NULL, NULL, 0);
	NEED(send(client, "x", 1, 0));
	repro_add(result, recv(accepted, &data, 1, 0) == 1 ? "data" : "no data");
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
}

static void blocking(int protocol, char *result)
{
	struct sockaddr_in address;
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	repro_bound(protocol, &address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_value(repro_connect(client, &address)));
	works(protocol, client, &address, result);
}

static void refused(int protocol, int client, struct sockaddr_in *address)
{
	struct pollfd ended = { .fd = client, .events = POLLOUT };

	repro_bound(protocol, address);
	NEED(fcntl(client, F_SETFL, O_NONBLOCK));
	repro_connect(client, address);
	poll(&ended, 1, 3000);
	NEED(fcntl(client, F_SETFL, 0));
}

static void not_blocking(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	refused(protocol, client, &address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	works(protocol, client, &address, result);
}

static void error_taken(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	refused(protocol, client, &address);
	repro_add(result, repro_kept_error(client));
	repro_add(result, repro_value(repro_connect(client, &address)));
	works(protocol, client, &address, result);
}

static void listener(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	repro_bound(protocol, &address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_value(listen(client, 1)));
}

static const struct repro_case cases[] = {
	{ "connect() refused twice, then to a server", "ECONNREFUSED, ECONNREFUSED, 0, data", NULL, blocking, 0 },
	{ "refused without blocking, connect() for the error, then to a server", "ECONNREFUSED, 0, data", NULL,
	  not_blocking, 0 },
	{ "refused without blocking, SO_ERROR, connect(), then to a server", "ECONNREFUSED, ECONNABORTED, 0, data", NULL,
	  error_taken, 0 },
	{ "connect() refused, then listen()", "ECONNREFUSED, 0", NULL, listener, 0 },
};

REPRO_MAIN(cases)
