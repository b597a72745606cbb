// SPDX-License-Identifier: GPL-2.0
/* sockatmark() before, at, and after urgent data. */
#include "repro.h"

static void walk(int protocol, int in_line, char *result)
{
	char data[16];
	int ends[2];

	repro_pair(protocol, ends);
	NEED(repro_set(ends[1], SOL_SOCKET, SO_OOBINLINE, in_line));
	sprintf(result, "%d", NEED(sockatmark(ends[1])));
	NEED(send(ends[0], "ab", 2, 0));
	NEED(send(ends[0], "!", 1, MSG_OOB));
	usleep(100000);
	sprintf(result + strlen(result), " %d", NEED(sockatmark(ends[1])));
	NEED(recv(ends[1], data, 1, 0));
	sprintf(result + strlen(result), " %d", NEED(sockatmark(ends[1])));
	NEED(recv(ends[1], data, 1, 0));
	sprintf(result + strlen(result), " %d", NEED(sockatmark(ends[1])));
	if (!in_line)
		NEED(recv(ends[1], data, 1, MSG_OOB));
	else
		NEED(recv(ends[1], data, 1, 0));
	NEED(send(ends[0], "cd", 2, 0));
	NEED(recv(ends[1], data, 1, 0));
	sprintf(result + strlen(result), " %d", NEED(sockatmark(ends[1])));
}

static void out_of_line(int protocol, char *result)
{
	walk(protocol, 0, result);
}

static void in_line(int protocol, char *result)
{
	walk(protocol, 1, result);
}

static const struct repro_case cases[] = {
	{ "before urgent data, two bytes before it, one, at the mark, behind it", "0 0 0 1 0", NULL, out_of_line, 0 },
	{ "the same with SO_OOBINLINE", "0 0 0 1 0", NULL, in_line, 0 },
};

REPRO_MAIN(cases)
