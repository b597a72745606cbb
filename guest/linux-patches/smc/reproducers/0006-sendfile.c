// SPDX-License-Identifier: GPL-2.0
/* sendfile() of a file with a count past its end, on a connection that stays open. */
#include "repro.h"

#include <sys/mman.h>
#include <sys/sendfile.h>

static void past_the_end(int protocol, char *result)
{
	struct pollfd readable = { .events = POLLIN };
	static char data[10000];
	size_t received = 0;
	double begin, took;
	int ends[2], file;
	ssize_t done;

	file = NEED(memfd_create("file", 0));
	NEED(write(file, data, sizeof(data)));
	NEED(lseek(file, 0, SEEK_SET));
	repro_pair(protocol, ends);
	begin = repro_now();
	while ((done = NEED(sendfile(ends[0], file, NULL, 1 << 20))) > 0)
		;
	readable.fd = ends[1];
	while (received < sizeof(data) && poll(&readable, 1, 3000) == 1)
		received += NEED(recv(ends[1], data, sizeof(data), 0));
	took = repro_now() - begin;
	sprintf(result, "%zu%s", received, took < 0.5 ? ", at once" : "");
}

static const struct repro_case cases[] = {
	{ "what of a file of 10000 bytes arrives within three seconds", "10000, at once", NULL, past_the_end, 0 },
};

REPRO_MAIN(cases)
