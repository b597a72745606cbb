// SPDX-License-Identifier: GPL-2.0
/* SO_KEEPALIVE of a connection: whether the timer of the TCP connection runs, and goes on running, as /proc has it. */
#include "repro.h"

static const char *timer(int fd)
{
	struct sockaddr_in own, peer;
	socklen_t length = sizeof(own);
	unsigned int local, remote, kind;
	const char *found = "none";
	char line[256];
	FILE *table;

	NEED(getsockname(fd, (struct sockaddr *)&own, &length));
	NEED(getpeername(fd, (struct sockaddr *)&peer, &length));
	table = fopen("/proc/net/tcp", "r");
	while (fgets(line, sizeof(line), table))
		if (sscanf(line, " %*u: %*x:%x %*x:%x %*x %*x:%*x %x:", &local, &remote, &kind) == 3 &&
		    local == ntohs(own.sin_port) && remote == ntohs(peer.sin_port))
			found = kind == 2 ? "keepalive" : "another";
	fclose(table);
	return found;
}

static void set(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	usleep(500000);
	NEED(repro_set(ends[0], IPPROTO_TCP, TCP_KEEPIDLE, 1));
	sprintf(result, "%s", timer(ends[0]));
	NEED(repro_set(ends[0], SOL_SOCKET, SO_KEEPALIVE, 1));
	sprintf(result + strlen(result), ", %s", timer(ends[0]));
	sleep(3);
	sprintf(result + strlen(result), ", %s", timer(ends[0]));
	NEED(repro_set(ends[0], SOL_SOCKET, SO_KEEPALIVE, 0));
	sprintf(result + strlen(result), ", %s", timer(ends[0]));
}

static const struct repro_case cases[] = {
	{ "the timer before SO_KEEPALIVE, with it, three times its period later, without it",
	  "another, keepalive, keepalive, another", NULL, set, 0 },
};

REPRO_MAIN(cases)
