// SPDX-License-Identifier: GPL-2.0
/* listen() that fails, and works when it is called again. Without the patch the system is dead after that. */
#include "repro.h"

static void twice(int protocol, char *result)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int first, second, client;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	first = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	second = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_set(first, SOL_SOCKET, SO_REUSEADDR, 1));
	NEED(repro_set(second, SOL_SOCKET, SO_REUSEADDR, 1));
	NEED(bind(first, (struct sockaddr *)&address, sizeof(address)));
	NEED(getsockname(first, (struct sockaddr *)&address, &length));
	NEED(bind(second, (struct sockaddr *)&address, sizeof(address)));
	NEED(listen(first, 1));
	sprintf(result, "%s", repro_value(listen(second, 1)));
	close(first);
	sprintf(result + strlen(result), ", then %s", repro_value(listen(second, 1)));
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	sprintf(result + strlen(result), ", connect() %s",
		repro_value(connect(client, (struct sockaddr *)&address, sizeof(address))));
	NEED(accept(second, NULL, NULL));
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
}

static const struct repro_case cases[] = {
	{ "listen() on a port with a listener, again when that one has gone, and a client",
	  "EADDRINUSE, then 0, connect() 0", NULL, twice, 0 },
};

REPRO_MAIN(cases)
