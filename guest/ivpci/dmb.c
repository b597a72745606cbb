// SPDX-License-Identifier: GPL-2.0
/* DMBs of a window: those we own, and the peer's that we use. */

#include <linux/bitfield.h>
#include <linux/bitmap.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/string.h>

#include "dmb.h"

static void ivpci_halves(u32 shift, u32 side, u64 *first, u64 *last)
{
	u64 half = 1ULL << (shift - 1);

	*first = side ? half : IVPCI_CTRL_AREAS;
	*last = side ? 2 * half : half;
}

/**
 * ivpci_token() - make a token
 * @random: random bits
 * @tag: the user's tag
 * @slot: the owner's slot
 *
 * Return: the token, never zero.
 */
u64 ivpci_token(u64 random, u32 tag, u32 slot)
{
	random &= ~(IVPCI_TOKEN_SLOT | IVPCI_TOKEN_TAG);
	return random | FIELD_PREP(IVPCI_TOKEN_TAG, tag) |
	       FIELD_PREP(IVPCI_TOKEN_SLOT, slot + 1);
}

/**
 * ivpci_token_slot() - which slot of its owner does a token name?
 * @token: the token
 *
 * Return: the slot, or -EINVAL.
 */
int ivpci_token_slot(u64 token)
{
	u32 slot = FIELD_GET(IVPCI_TOKEN_SLOT, token);

	if (!slot || slot > IVPCI_SLOTS)
		return -EINVAL;
	return slot - 1;
}

/**
 * ivpci_dmbs_init() - prepare the allocator for a window; nothing is allocated
 * @dmbs: the DMBs
 * @shift: log2 of the window's size
 * @side: which side we are
 *
 * Return: 0 or -ENOMEM.
 */
int ivpci_dmbs_init(struct ivpci_dmbs *dmbs, u32 shift, u32 side)
{
	u64 first, last;

	ivpci_halves(shift, side, &first, &last);
	memset(dmbs, 0, sizeof(*dmbs));
	dmbs->first = first / IVPCI_DMB_MIN;
	dmbs->last = last / IVPCI_DMB_MIN;
	dmbs->units = (1ULL << shift) / IVPCI_DMB_MIN;
	dmbs->map = bitmap_alloc(dmbs->units, GFP_KERNEL);
	if (!dmbs->map)
		return -ENOMEM;
	bitmap_fill(dmbs->map, dmbs->units);
	bitmap_clear(dmbs->map, dmbs->first, dmbs->last - dmbs->first);
	return 0;
}

/**
 * ivpci_dmbs_exit() - free the allocator
 * @dmbs: the DMBs
 */
void ivpci_dmbs_exit(struct ivpci_dmbs *dmbs)
{
	bitmap_free(dmbs->map);
	dmbs->map = NULL;
}

/**
 * ivpci_dmbs_begin() - begin a session
 * @dmbs: the DMBs
 * @own: our control area, cleared
 * @peer: the peer's control area
 *
 * The peer has let go of all DMBs. Those that SMC has not given back, or that
 * somebody in this system still uses, stay as they are, but have no token.
 */
void ivpci_dmbs_begin(struct ivpci_dmbs *dmbs, struct ivpci_ctrl *own,
		      const struct ivpci_ctrl *peer)
{
	u32 slot;

	dmbs->own = own;
	dmbs->peer = peer;
	for (slot = 0; slot < IVPCI_SLOTS; slot++)
		dmbs->slot[slot].token = 0;
}

/* Take back a retired DMB if nobody can touch it any more. */
static void ivpci_dmb_reclaim(struct ivpci_dmbs *dmbs, u32 slot)
{
	const __le64 *attached = &dmbs->peer->attached[slot];
	struct ivpci_dmb *dmb = &dmbs->slot[slot];

	/* acquire: the peer's stores to the DMB come before */
	if (dmb->token && le64_to_cpu(virt_load_acquire(attached)) == dmb->token)
		return;
	if (dmbs->busy && dmbs->busy(dmbs, dmb))
		return;
	bitmap_clear(dmbs->map, dmb->off / IVPCI_DMB_MIN,
		     dmb->len / IVPCI_DMB_MIN);
	dmb->state = IVPCI_DMB_FREE;
	dmbs->retired--;
}

/**
 * ivpci_dmb_affordable() - may a DMB be of this size?
 * @dmbs: the DMBs
 * @len: its size
 *
 * SMC asks for a smaller DMB when it is refused one. So the fewer memory is
 * left the smaller are the DMBs: the first connections cannot leave nothing
 * for those that follow, which would fall back to TCP.
 *
 * Return: true if it may.
 */
bool ivpci_dmb_affordable(const struct ivpci_dmbs *dmbs, u32 len)
{
	u64 left = dmbs->units - bitmap_weight(dmbs->map, dmbs->units);

	return len <= IVPCI_DMB_MIN || len <= left * IVPCI_DMB_MIN / IVPCI_DMB_SHARE;
}

/**
 * ivpci_dmb_alloc() - allocate a slot and memory for a DMB
 * @dmbs: the DMBs
 * @len: its size
 *
 * The memory is not cleared, and the peer knows nothing of it yet.
 *
 * Return: the slot; -EINVAL if @len is no size for a DMB; -ENOSPC.
 */
int ivpci_dmb_alloc(struct ivpci_dmbs *dmbs, u32 len)
{
	unsigned long units = len / IVPCI_DMB_MIN;
	struct ivpci_dmb *dmb;
	unsigned long at;
	u32 slot;

	if (!is_power_of_2(len) || len < IVPCI_DMB_MIN)
		return -EINVAL;

	for (slot = 0; dmbs->retired && slot < IVPCI_SLOTS; slot++)
		if (dmbs->slot[slot].state == IVPCI_DMB_RETIRED)
			ivpci_dmb_reclaim(dmbs, slot);

	for (slot = 0; slot < IVPCI_SLOTS; slot++)
		if (dmbs->slot[slot].state == IVPCI_DMB_FREE)
			break;
	if (slot == IVPCI_SLOTS)
		return -ENOSPC;
	at = bitmap_find_next_zero_area(dmbs->map, dmbs->last, dmbs->first,
					units, units - 1);
	if (at >= dmbs->last)
		return -ENOSPC;

	bitmap_set(dmbs->map, at, units);
	dmb = &dmbs->slot[slot];
	dmb->off = (u64)at * IVPCI_DMB_MIN;
	dmb->len = len;
	dmb->token = 0;
	dmb->state = IVPCI_DMB_LIVE;
	dmbs->live++;
	return slot;
}

/**
 * ivpci_dmb_publish() - let the peer find a DMB
 * @dmbs: the DMBs
 * @slot: the DMB's slot
 * @token: its token
 *
 * The memory has been cleared before.
 */
void ivpci_dmb_publish(struct ivpci_dmbs *dmbs, u32 slot, u64 token)
{
	struct ivpci_dirent *entry = &dmbs->own->dir[slot];
	struct ivpci_dmb *dmb = &dmbs->slot[slot];

	dmb->token = token;
	WRITE_ONCE(entry->off, cpu_to_le32(dmb->off >> IVPCI_DMB_OFF_SHIFT));
	WRITE_ONCE(entry->len, cpu_to_le32(dmb->len));
	/* release: who sees the token sees the entry, and cleared memory */
	virt_store_release(&entry->token, cpu_to_le64(token));
}

/**
 * ivpci_dmb_retire() - take a DMB out of use
 * @dmbs: the DMBs
 * @slot: the DMB's slot
 *
 * Slot and memory are free as soon as the peer has let go of them.
 */
void ivpci_dmb_retire(struct ivpci_dmbs *dmbs, u32 slot)
{
	WRITE_ONCE(dmbs->own->dir[slot].token, 0);
	dmbs->slot[slot].state = IVPCI_DMB_RETIRED;
	dmbs->live--;
	dmbs->retired++;
	virt_mb(); /* directory before attached; pairs with ivpci_remote_hold() */
	ivpci_dmb_reclaim(dmbs, slot);
}

/**
 * ivpci_remotes_init() - begin a session: nothing of the peer's is in use
 * @remotes: the peer's DMBs
 * @own: our control area, cleared
 * @peer: the peer's control area
 * @shift: log2 of the window's size
 * @side: which side we are
 */
void ivpci_remotes_init(struct ivpci_remotes *remotes, struct ivpci_ctrl *own,
			const struct ivpci_ctrl *peer, u32 shift, u32 side)
{
	memset(remotes, 0, sizeof(*remotes));
	remotes->own = own;
	remotes->peer = peer;
	ivpci_halves(shift, !side, &remotes->first, &remotes->last);
}

static bool ivpci_remote_there(struct ivpci_remotes *remotes, u32 slot,
			       u64 token)
{
	return le64_to_cpu(READ_ONCE(remotes->peer->dir[slot].token)) == token;
}

/**
 * ivpci_remote_hold() - use a DMB of the peer
 * @remotes: the peer's DMBs
 * @token: the DMB's token
 *
 * The peer leaves the DMB's memory alone until ivpci_remote_put().
 *
 * Return: the DMB, or NULL if there is none of that token.
 */
struct ivpci_remote *ivpci_remote_hold(struct ivpci_remotes *remotes,
				       u64 token)
{
	int slot = ivpci_token_slot(token);
	const struct ivpci_dirent *entry;
	struct ivpci_remote *remote;
	u64 off;
	u32 len;

	if (slot < 0)
		return NULL;
	remote = &remotes->slot[slot];
	if (remote->holds) {
		if (remote->token != token ||
		    !ivpci_remote_there(remotes, slot, token))
			return NULL;
		remote->holds++;
		return remote;
	}

	entry = &remotes->peer->dir[slot];
	/* acquire: the entry is the token's */
	if (le64_to_cpu(virt_load_acquire(&entry->token)) != token)
		return NULL;
	off = (u64)le32_to_cpu(READ_ONCE(entry->off)) << IVPCI_DMB_OFF_SHIFT;
	len = le32_to_cpu(READ_ONCE(entry->len));
	if (!is_power_of_2(len) || len < IVPCI_DMB_MIN || off & (len - 1) ||
	    off < remotes->first || off >= remotes->last ||
	    len > remotes->last - off)
		return NULL;

	WRITE_ONCE(remotes->own->attached[slot], cpu_to_le64(token));
	virt_mb(); /* attached before directory; pairs with ivpci_dmb_retire() */
	if (!ivpci_remote_there(remotes, slot, token)) {
		WRITE_ONCE(remotes->own->attached[slot], 0);
		return NULL;
	}
	remote->token = token;
	remote->off = off;
	remote->len = len;
	remote->holds = 1;
	remotes->held++;
	return remote;
}

/**
 * ivpci_remote_find() - find a DMB of the peer that is in use
 * @remotes: the peer's DMBs
 * @token: the DMB's token
 *
 * Return: the DMB, or NULL if it is not in use.
 */
struct ivpci_remote *ivpci_remote_find(struct ivpci_remotes *remotes,
				       u64 token)
{
	int slot = ivpci_token_slot(token);

	if (slot < 0 || !remotes->slot[slot].holds ||
	    remotes->slot[slot].token != token)
		return NULL;
	return &remotes->slot[slot];
}

/**
 * ivpci_remote_put() - end what ivpci_remote_hold() began
 * @remotes: the peer's DMBs
 * @remote: the DMB
 */
void ivpci_remote_put(struct ivpci_remotes *remotes,
		      struct ivpci_remote *remote)
{
	if (--remote->holds)
		return;
	remotes->held--;
	/* release: our stores to the DMB come before */
	virt_store_release(&remotes->own->attached[remote - remotes->slot], 0);
}

/**
 * ivpci_copy() - copy into a DMB
 * @dst: where to
 * @src: where from
 * @len: how much
 *
 * The receiver reads SMC's cursors and flags while they are written. They are in
 * 8-byte words, whose stores are releases: who sees a word sees all that SMC
 * stored before it, here or in a DMB that is attached. So does who reuses what
 * SMC read before it: a cursor says that its part of a buffer is free.
 */
void ivpci_copy(void *dst, const void *src, size_t len)
{
	u64 word;

	if (len > IVPCI_WORDS_MAX || !IS_ALIGNED((unsigned long)dst, 8)) {
		virt_mb(); /* what SMC read and stored before */
		memcpy(dst, src, len);
		return;
	}
	for (; len >= sizeof(word); len -= sizeof(word)) {
		memcpy(&word, src, sizeof(word));
		/* release: what SMC read and stored before, and the last word */
		virt_store_release((u64 *)dst, word);
		dst += sizeof(word);
		src += sizeof(word);
	}
	if (!len)
		return;
	virt_mb(); /* the words before */
	memcpy(dst, src, len);
}
