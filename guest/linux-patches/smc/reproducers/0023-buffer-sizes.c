// SPDX-License-Identifier: GPL-2.0
/* The buffer sizes of a new network namespace. */
#include "repro.h"

#include <sched.h>

static void value(int protocol, const char *end, const char *new, char *old)
{
	char name[64];
	int file;
	ssize_t length;

	snprintf(name, sizeof(name), "/proc/sys/net/%s%s", protocol == IPPROTO_SMC ? "smc/" : "ipv4/tcp_", end);
	file = NEED(open(name, O_RDWR));
	length = NEED(read(file, old, 63));
	old[length] = 0;
	if (new)
		NEED(pwrite(file, new, strlen(new), 0));
	close(file);
}

static void inherited(int protocol, char *result)
{
	static const char *const ends[] = { "wmem", "rmem" };
	const char *set = protocol == IPPROTO_SMC ? "200000" : "4096 200000 4194304";
	char old[2][64], found[64];
	int at;

	for (at = 0; at < 2; at++)
		value(protocol, ends[at], set, old[at]);
	at = open("/proc/self/ns/net", O_RDONLY);
	NEED(unshare(CLONE_NEWNET));
	value(protocol, "wmem", NULL, found);
	sprintf(result, "%s", strstr(found, "200000") ? "the same" : "another");
	value(protocol, "rmem", NULL, found);
	sprintf(result + strlen(result), ", %s", strstr(found, "200000") ? "the same" : "another");
	NEED(setns(at, CLONE_NEWNET));
	for (at = 0; at < 2; at++)
		value(protocol, ends[at], old[at], found);
}

static const struct repro_case cases[] = {
	{ "wmem and rmem of a new network namespace after they were set in the initial one", "the same, the same", NULL,
	  inherited, 0 },
};

REPRO_MAIN(cases)
