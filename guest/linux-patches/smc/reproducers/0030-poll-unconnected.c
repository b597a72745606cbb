// SPDX-License-Identifier: GPL-2.0
/* poll() of a socket that has no connection. */
#include "repro.h"

static void new(int protocol, char *result)
{
	repro_add(result, repro_poll(NEED(socket(AF_INET, SOCK_STREAM, protocol)), 0));
}

static void refused(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	repro_bound(protocol, &address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_poll(client, 0));
}

static void connecting(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));
	struct sockaddr_in address;

	repro_silent(&address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_poll(client, 300));
}

static const struct repro_case cases[] = {
	{ "poll() of a new socket", "OUT HUP", NULL, new, 0 },
	{ "poll() after connect() was refused", "ECONNREFUSED, OUT HUP", NULL, refused, 0 },
	{ "poll() while connect() goes on", "EINPROGRESS, 0", NULL, connecting, 0 },
};

REPRO_MAIN(cases)
