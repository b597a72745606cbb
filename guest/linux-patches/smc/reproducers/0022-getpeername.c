// SPDX-License-Identifier: GPL-2.0
/* getpeername() after shutdown(). */
#include "repro.h"

static void ask(int fd, char *result)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);

	usleep(100000);
	sprintf(result + strlen(result), "%s%s", *result ? ", " : "",
		repro_value(getpeername(fd, (struct sockaddr *)&address, &length)));
}

static void own(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	ask(ends[0], result);
	NEED(shutdown(ends[0], SHUT_WR));
	ask(ends[0], result);
	ask(ends[1], result);
	NEED(shutdown(ends[1], SHUT_WR));
	ask(ends[0], result);
}

static void none(int protocol, char *result)
{
	struct sockaddr_in address;

	ask(NEED(socket(AF_INET, SOCK_STREAM, protocol)), result);
	ask(repro_listen(protocol, &address), result);
}

static void reset(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[0], "not read", 8, 0));
	usleep(100000);
	close(ends[1]);
	ask(ends[0], result);
}

static const struct repro_case cases[] = {
	{ "connected, after SHUT_WR here, at the peer, here after its SHUT_WR, too", "0, 0, 0, ENOTCONN", NULL, own, 0 },
	{ "not connected, listening", "ENOTCONN, ENOTCONN", NULL, none, 0 },
	{ "after a reset", "ENOTCONN", NULL, reset, 0 },
};

REPRO_MAIN(cases)
