// SPDX-License-Identifier: GPL-2.0
/* The peer closes with data that it has not read: TCP tells the reader by an error. */
#include "repro.h"

static void unread(int protocol, char *result)
{
	char data[16];
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[0], "not read", 8, 0));
	NEED(send(ends[1], "part", 4, 0));
	usleep(100000);
	close(ends[1]);
	usleep(100000);
	sprintf(result, "%s", repro_value(recv(ends[0], data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(ends[0], data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(ends[0], data, sizeof(data), 0)));
}

static void spliced(int protocol, char *result)
{
	int ends[2], through[2];

	repro_pair(protocol, ends);
	NEED(pipe(through));
	NEED(send(ends[0], "not read", 8, 0));
	usleep(100000);
	close(ends[1]);
	usleep(100000);
	sprintf(result, "%s", repro_value(splice(ends[0], NULL, through[1], NULL, 10, 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(splice(ends[0], NULL, through[1], NULL, 10, 0)));
}

static const struct repro_case cases[] = {
	{ "recv() of four bytes from a peer that closed with unread data", "4, then ECONNRESET, then 0", NULL, unread, 0 },
	{ "splice() of none from a peer that closed with unread data", "ECONNRESET, then 0", NULL, spliced, 0 },
};

REPRO_MAIN(cases)
