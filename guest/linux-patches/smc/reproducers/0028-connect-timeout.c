// SPDX-License-Identifier: GPL-2.0
/* connect() with SO_SNDTIMEO to an address that does not answer. */
#include "repro.h"

/* a socket whose connect(), which is called first, may take 0.3 s */
static int limited(int protocol, int flags, struct sockaddr_in *address, char *result)
{
	const struct timeval limit = { .tv_usec = 300000 };
	int client = NEED(socket(AF_INET, SOCK_STREAM | flags, protocol));

	repro_silent(address);
	NEED(setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	repro_add(result, repro_value(repro_connect(client, address)));
	return client;
}

static void blocking(int protocol, char *result)
{
	struct sockaddr_in address;
	int client = limited(protocol, 0, &address, result);

	repro_add(result, repro_value(repro_connect(client, &address)));
	usleep(500000);
	/* it goes on in the background */
	repro_add(result, repro_kept_error(client));
}

static void not_blocking(int protocol, char *result)
{
	struct sockaddr_in address;
	int client = limited(protocol, SOCK_NONBLOCK, &address, result);

	usleep(700000);
	repro_add(result, repro_kept_error(client));
}

static const struct repro_case cases[] = {
	{ "connect() with SO_SNDTIMEO, twice, SO_ERROR", "EINPROGRESS, EALREADY, 0", NULL, blocking, 0 },
	{ "connect() without blocking with SO_SNDTIMEO, later SO_ERROR", "EINPROGRESS, 0", NULL, not_blocking, 0 },
};

REPRO_MAIN(cases)
