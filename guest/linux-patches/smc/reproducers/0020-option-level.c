// SPDX-License-Identifier: GPL-2.0
/* IPV6_MTU_DISCOVER has the number of TCP_FASTOPEN. */
#include "repro.h"

static void mtu_discover(int protocol, char *result)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	socklen_t length = sizeof(address);
	int listener, client;

	listener = NEED(socket(AF_INET6, SOCK_STREAM, protocol));
	NEED(bind(listener, (struct sockaddr *)&address, sizeof(address)));
	NEED(listen(listener, 1));
	NEED(getsockname(listener, (struct sockaddr *)&address, &length));
	client = NEED(socket(AF_INET6, SOCK_STREAM, protocol));
	sprintf(result, "%s", repro_value(repro_set(client, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)));
	NEED(connect(client, (struct sockaddr *)&address, sizeof(address)));
	NEED(accept(listener, NULL, NULL));
	sprintf(result + strlen(result), "%s", repro_mode(client) == (protocol == IPPROTO_SMC ?
		SMC_DIAG_MODE_SMCD : -1) ? ", as it should be" : ", fell back to TCP");
	sprintf(result + strlen(result), ", then %s",
		repro_value(repro_set(client, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_WANT)));
}

static const struct repro_case cases[] = {
	{ "IPV6_MTU_DISCOVER, the connection, and the option again", "0, as it should be, then 0", NULL, mtu_discover, 0 },
};

REPRO_MAIN(cases)
