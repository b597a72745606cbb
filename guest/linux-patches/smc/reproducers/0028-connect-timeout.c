// SPDX-License-Identifier: GPL-2.0
/* connect() with SO_SNDTIMEO to an address that does not answer. */
#include "repro.h"

static void limited(int protocol, char *result)
{
	const struct timeval limit = { .tv_usec = 300000 };
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	struct sockaddr_in address;

	repro_silent(&address);
	NEED(setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	repro_add(result, repro_value(repro_connect(client, &address)));
	repro_add(result, repro_value(repro_connect(client, &address)));
	usleep(500000);
	/* it goes on in the background */
	repro_add(result, repro_kept_error(client));
}

static void limited_later(int protocol, char *result)
{
	const struct timeval limit = { .tv_usec = 300000 };
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));
	struct sockaddr_in address;

	repro_silent(&address);
	NEED(setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	repro_add(result, repro_value(repro_connect(client, &address)));
	usleep(700000);
	repro_add(result, repro_kept_error(client));
}

static const struct repro_case cases[] = {
	{ "connect() with SO_SNDTIMEO, twice, SO_ERROR", "EINPROGRESS, EALREADY, 0", NULL, limited, 0 },
	{ "connect() without blocking with SO_SNDTIMEO, later SO_ERROR", "EINPROGRESS, 0", NULL, limited_later, 0 },
};

REPRO_MAIN(cases)
