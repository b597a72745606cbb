/* SPDX-License-Identifier: GPL-2.0 */
/* DMBs of a window: those we own, and the peer's that we use. No locks. */
#ifndef _IVPCI_DMB_H
#define _IVPCI_DMB_H

#include "window.h"

#define IVPCI_DMB_SHARE		16	/* the part of what is left for one DMB */

/**
 * enum ivpci_dmb_state - what a slot of ours is
 * @IVPCI_DMB_FREE: free
 * @IVPCI_DMB_LIVE: a DMB, published or about to be
 * @IVPCI_DMB_RETIRED: was a DMB that somebody may still be using
 */
enum ivpci_dmb_state {
	IVPCI_DMB_FREE,
	IVPCI_DMB_LIVE,
	IVPCI_DMB_RETIRED,
};

/**
 * struct ivpci_dmb - a DMB that we own
 * @token: its token; 0 until it is published
 * @off: where it begins in the window
 * @len: its size
 * @state: what the slot is
 */
struct ivpci_dmb {
	u64 token;
	u64 off;
	u32 len;
	enum ivpci_dmb_state state;
};

/**
 * struct ivpci_dmbs - the DMBs that we own in a window
 * @own: our control area
 * @peer: the peer's control area
 * @busy: does somebody in this system still use a retired DMB's memory?
 * @units: size of the window in units of IVPCI_DMB_MIN
 * @first: first unit of our half
 * @last: the unit behind our half
 * @map: units in use
 * @live: how many are allocated and not retired
 * @retired: how many wait for the peer, or for @busy, to let go
 * @slot: the DMBs
 */
struct ivpci_dmbs {
	struct ivpci_ctrl *own;
	const struct ivpci_ctrl *peer;
	bool (*busy)(struct ivpci_dmbs *dmbs, const struct ivpci_dmb *dmb);
	unsigned long units;
	unsigned long first;
	unsigned long last;
	unsigned long *map;
	unsigned int live;
	unsigned int retired;
	struct ivpci_dmb slot[IVPCI_SLOTS];
};

/**
 * struct ivpci_remote - a DMB of the peer that we use
 * @token: its token
 * @off: where it begins in the window
 * @len: its size
 * @holds: how often it is in use; 0: the entry means nothing
 */
struct ivpci_remote {
	u64 token;
	u64 off;
	u32 len;
	u32 holds;
};

/**
 * struct ivpci_remotes - the peer's DMBs that we use
 * @own: our control area
 * @peer: the peer's control area
 * @first: where the peer's half begins in the window
 * @last: where it ends
 * @held: how many slots are in use
 * @slot: the DMBs by the peer's slot
 */
struct ivpci_remotes {
	struct ivpci_ctrl *own;
	const struct ivpci_ctrl *peer;
	u64 first;
	u64 last;
	unsigned int held;
	struct ivpci_remote slot[IVPCI_SLOTS];
};

u64 ivpci_token(u64 random, u32 tag, u32 slot);
int ivpci_token_slot(u64 token);

int ivpci_dmbs_init(struct ivpci_dmbs *dmbs, u32 shift, u32 side);
void ivpci_dmbs_exit(struct ivpci_dmbs *dmbs);
void ivpci_dmbs_begin(struct ivpci_dmbs *dmbs, struct ivpci_ctrl *own,
		      const struct ivpci_ctrl *peer);
bool ivpci_dmb_affordable(const struct ivpci_dmbs *dmbs, u32 len);
int ivpci_dmb_alloc(struct ivpci_dmbs *dmbs, u32 len);
void ivpci_dmb_publish(struct ivpci_dmbs *dmbs, u32 slot, u64 token);
void ivpci_dmb_retire(struct ivpci_dmbs *dmbs, u32 slot);

void ivpci_remotes_init(struct ivpci_remotes *remotes, struct ivpci_ctrl *own,
			const struct ivpci_ctrl *peer, u32 shift, u32 side);
struct ivpci_remote *ivpci_remote_hold(struct ivpci_remotes *remotes,
				       u64 token);
struct ivpci_remote *ivpci_remote_find(struct ivpci_remotes *remotes,
				       u64 token);
void ivpci_remote_put(struct ivpci_remotes *remotes,
		      struct ivpci_remote *remote);
void ivpci_copy(void *dst, const void *src, size_t len);

#endif /* _IVPCI_DMB_H */
