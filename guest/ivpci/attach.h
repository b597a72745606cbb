/* SPDX-License-Identifier: GPL-2.0 */
/* Whom to attach to, and how soon. No device, no locks. */
#ifndef _IVPCI_ATTACH_H
#define _IVPCI_ATTACH_H

#include <linux/jiffies.h>

#include "window.h"

/* A link that was up for so long has no backoff */
#define IVPCI_STEADY		(10UL * HZ)
#define IVPCI_BACKOFF_MIN	max(HZ / 8UL, 1UL)
#define IVPCI_BACKOFF_FAULT	(1UL * HZ)
#define IVPCI_BACKOFF_MAX	(4UL * HZ)

/**
 * struct ivpci_header - the peer's header, read once and checked
 * @epoch: its epoch, not zero
 * @position: its IVPosition
 * @vector: which vector to ring
 * @tag: what it wants in the tokens of DMBs that it is to use
 * @gid: its GID
 */
struct ivpci_header {
	u32 epoch;
	u32 position;
	u32 vector;
	u32 tag;
	uuid_t gid;
};

bool ivpci_gid_valid(const uuid_t *gid);
void ivpci_gid_bind(uuid_t *gid, const u32 *device);
bool ivpci_gid_bound(const uuid_t *gid, const u32 *device);
const char *ivpci_read_header(const struct ivpci_ctrl *peer, u32 shift,
			      struct ivpci_header *hdr);
unsigned long ivpci_backoff(unsigned long last, unsigned long up, bool faulty);

#endif /* _IVPCI_ATTACH_H */
