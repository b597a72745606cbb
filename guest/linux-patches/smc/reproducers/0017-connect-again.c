// SPDX-License-Identifier: GPL-2.0
/* A socket is used again after its connect() was refused. */
#include "repro.h"

/* an address at which nobody listens: bound, so that nobody else comes */
static int nobody(int protocol, struct sockaddr_in *address)
{
	socklen_t length = sizeof(*address);
	int holder = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	memset(address, 0, sizeof(*address));
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	NEED(bind(holder, (struct sockaddr *)address, length));
	NEED(getsockname(holder, (struct sockaddr *)address, &length));
	return holder;
}

static int connection(int client, struct sockaddr_in *address)
{
	return connect(client, (struct sockaddr *)address, sizeof(*address));
}

static void add(char *result, const char *value)
{
	sprintf(result + strlen(result), "%s%s", *result ? ", " : "", value);
}

static void works(int protocol, int client, struct sockaddr_in *address, char *result)
{
	int server = repro_listen(protocol, address), accepted;
	char data;

	add(result, repro_value(connection(client, address)));
	accepted = accept4(server, NULL, NULL, 0);
	NEED(send(client, "x", 1, 0));
	add(result, recv(accepted, &data, 1, 0) == 1 ? "data" : "no data");
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
}

static void blocking(int protocol, char *result)
{
	struct sockaddr_in address;
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	nobody(protocol, &address);
	add(result, repro_value(connection(client, &address)));
	add(result, repro_value(connection(client, &address)));
	works(protocol, client, &address, result);
}

static void refused(int protocol, int client, struct sockaddr_in *address)
{
	struct pollfd ended = { .fd = client, .events = POLLOUT };

	nobody(protocol, address);
	NEED(fcntl(client, F_SETFL, O_NONBLOCK));
	connection(client, address);
	poll(&ended, 1, 3000);
	NEED(fcntl(client, F_SETFL, 0));
}

static void not_blocking(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	refused(protocol, client, &address);
	add(result, repro_value(connection(client, &address)));
	works(protocol, client, &address, result);
}

static void error_taken(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;
	socklen_t length;
	int error;

	refused(protocol, client, &address);
	length = sizeof(error);
	NEED(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length));
	add(result, repro_error(error));
	add(result, repro_value(connection(client, &address)));
	works(protocol, client, &address, result);
}

static void listener(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	nobody(protocol, &address);
	add(result, repro_value(connection(client, &address)));
	add(result, repro_value(listen(client, 1)));
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
