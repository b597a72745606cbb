// SPDX-License-Identifier: GPL-2.0
/* Whom to attach to, and how soon: GIDs, the peer's header, backoff. */

#include <linux/errno.h>
#include <linux/minmax.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#include "attach.h"

/**
 * ivpci_gid_valid() - can SMC-D tell this GID from others?
 * @gid: the GID
 *
 * SMC identifies an emulated device by the second half alone and takes a first
 * half of zero for "all of them".
 *
 * Return: true if neither half is zero.
 */
bool ivpci_gid_valid(const uuid_t *gid)
{
	return memchr_inv(gid->b, 0, 8) && memchr_inv(gid->b + 8, 0, 8);
}

/**
 * ivpci_read_header() - read and check the peer's header
 * @peer: the peer's control area
 * @shift: log2 of the window's size
 * @hdr: takes what was read
 *
 * Return: NULL if the peer is attached and its header is good, else the reason
 * why not. @hdr is only valid in the first case.
 */
const char *ivpci_read_header(const struct ivpci_ctrl *peer, u32 shift,
			      struct ivpci_header *hdr)
{
	/* acquire: the header is the epoch's */
	hdr->epoch = le32_to_cpu(virt_load_acquire(&peer->epoch));
	if (!hdr->epoch)
		return "not attached";
	if (le64_to_cpu(READ_ONCE(peer->magic)) != IVPCI_MAGIC)
		return "no window header";
	if (le32_to_cpu(READ_ONCE(peer->version)) != IVPCI_VERSION)
		return "unknown version";
	if (le32_to_cpu(READ_ONCE(peer->window_shift)) != shift)
		return "different window size";
	if (le32_to_cpu(READ_ONCE(peer->slots)) != IVPCI_SLOTS)
		return "different number of DMB slots";

	hdr->position = le32_to_cpu(READ_ONCE(peer->position));
	hdr->vector = le32_to_cpu(READ_ONCE(peer->vector));
	if (hdr->vector >= IVPCI_VECTORS)
		return "vector out of range";
	hdr->tag = le32_to_cpu(READ_ONCE(peer->tag));
	if (hdr->tag >= IVPCI_LINKS)
		return "tag out of range";
	memcpy(&hdr->gid, &peer->gid, sizeof(hdr->gid));
	/* No second look at the peer's memory after the check */
	barrier();
	if (!ivpci_gid_valid(&hdr->gid))
		return "half of the GID is zero";

	virt_rmb(); /* the header was whole if epoch is still the same */
	if (le32_to_cpu(READ_ONCE(peer->epoch)) != hdr->epoch)
		return "attaching";
	return NULL;
}

/* Which part of a GID's second half a device fixes */
static u32 ivpci_gid_fold(const u32 *device)
{
	return device[0] ^ device[1] ^ device[2] ^ device[3];
}

/**
 * ivpci_gid_bind() - make a GID one of a device
 * @gid: a random GID
 * @device: the words of the device's GID
 *
 * The first half is that of the device, and so are bytes 8 to 11, folded from
 * all of the device's GID: SMC compares second halves only. The rest stays.
 */
void ivpci_gid_bind(uuid_t *gid, const u32 *device)
{
	put_unaligned_le32(device[0], gid->b);
	put_unaligned_le32(device[1], gid->b + 4);
	put_unaligned_le32(ivpci_gid_fold(device), gid->b + 8);
	/* a device whose first half is zero has this one in place of it */
	if (!memchr_inv(gid->b, 0, 8))
		gid->b[0] = 1;
}

/**
 * ivpci_gid_bound() - is a GID one of a device?
 * @gid: the GID
 * @device: the words of the device's GID
 *
 * Return: true if ivpci_gid_bind() could have made it.
 */
bool ivpci_gid_bound(const uuid_t *gid, const u32 *device)
{
	uuid_t own = *gid;

	ivpci_gid_bind(&own, device);
	return uuid_equal(&own, gid);
}

/**
 * ivpci_backoff() - how long to wait before a link begins again
 * @last: what the last backoff was
 * @up: how long the link was up since then
 * @faulty: the peer was at fault
 *
 * After a link that lasted it costs nothing: the peer's guest may have begun
 * again. A peer that comes and goes gets a new attachment each four seconds at
 * most. All times are in jiffies.
 *
 * Return: how long.
 */
unsigned long ivpci_backoff(unsigned long last, unsigned long up, bool faulty)
{
	unsigned long next = 0;

	if (up < IVPCI_STEADY)
		next = last ? min(2 * last, IVPCI_BACKOFF_MAX) :
			      IVPCI_BACKOFF_MIN;
	return faulty ? max(next, IVPCI_BACKOFF_FAULT) : next;
}
