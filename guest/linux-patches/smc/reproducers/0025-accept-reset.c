// SPDX-License-Identifier: GPL-2.0
/* A connection is reset before it is accepted. */
#include "repro.h"

static void reset(int protocol, char *result)
{
	int server, client, accepted;
	struct sockaddr_in address;
	char data;

	server = repro_listen(protocol, &address);
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_connect(client, &address));
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
	repro_no_linger(client);
	close(client);
	usleep(300000);
	accepted = accept(server, NULL, NULL);
	if (accepted < 0) {
		sprintf(result, "accept() %s", repro_error(errno));
		return;
	}
	sprintf(result, "accept() a socket, recv() %s", repro_value(recv(accepted, &data, 1, 0)));
}

static const struct repro_case cases[] = {
	{ "accept() of a connection that was reset", "accept() a socket, recv() ECONNRESET", NULL, reset, 0 },
};

REPRO_MAIN(cases)
