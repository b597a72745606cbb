// SPDX-License-Identifier: GPL-2.0
/* What is seen of a connect() that did not block and was refused. */
#include "repro.h"

static int refused(int protocol)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));
	struct sockaddr_in address;

	repro_bound(protocol, &address);
	repro_connect(client, &address);
	usleep(300000);
	return client;
}

static void polled(int protocol, char *result)
{
	int client = refused(protocol);

	repro_add(result, repro_poll(client, 0));
	repro_add(result, repro_kept_error(client));
	repro_add(result, repro_poll(client, 0));
}

static void received(int protocol, char *result)
{
	int client = refused(protocol);
	char data;

	repro_add(result, repro_value(recv(client, &data, 1, 0)));
	repro_add(result, repro_value(recv(client, &data, 1, 0)));
}

static const struct repro_case cases[] = {
	{ "poll(), SO_ERROR, poll()", "IN OUT ERR HUP RDHUP, ECONNREFUSED, IN OUT HUP RDHUP", NULL, polled, 0 },
	{ "recv(), twice", "ECONNREFUSED, 0", NULL, received, 0 },
};

REPRO_MAIN(cases)
