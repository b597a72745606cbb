// SPDX-License-Identifier: GPL-2.0
/* The operations of a DIBS device. */

#include <linux/random.h>

#include "ivpci.h"

#define IVPCI_AT_LINK		GENMASK(21, 16)
#define IVPCI_AT_SLOT		GENMASK(15, 0)

/* The link to a peer, locked and up, or NULL */
static struct ivpci_link *ivpci_link_by_gid(struct ivpci *iv,
					    const uuid_t *gid)
{
	unsigned int i;

	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];

		if (!READ_ONCE(link->up))
			continue;
		spin_lock_bh(&link->lock);
		if (link->up && uuid_equal(&link->peer.gid, gid))
			return link;
		spin_unlock_bh(&link->lock);
	}
	return NULL;
}

/* The link that a token of a peer's DMB belongs to, locked, or NULL */
static struct ivpci_link *ivpci_link_by_token(struct ivpci *iv, u64 token)
{
	u32 tag = FIELD_GET(IVPCI_TOKEN_TAG, token);
	struct ivpci_link *link;

	if (tag >= iv->nlinks)
		return NULL;
	link = &iv->links[tag];
	spin_lock_bh(&link->lock);
	if (link->s)
		return link;
	spin_unlock_bh(&link->lock);
	return NULL;
}

static u16 ivpci_get_fabric_id(struct dibs_dev *dibs)
{
	struct ivpci *iv = dibs->drv_priv;

	return iv->fabric;
}

static int ivpci_query_remote_gid(struct dibs_dev *dibs, const uuid_t *rgid,
				  u32 vid_valid, u32 vid)
{
	struct ivpci_link *link = ivpci_link_by_gid(dibs->drv_priv, rgid);

	if (!link)
		return -ENETUNREACH;
	spin_unlock_bh(&link->lock);
	return 0;
}

static int ivpci_max_dmbs(void)
{
	return IVPCI_MAX_DMBS;
}

static int ivpci_register_dmb(struct dibs_dev *dibs, struct dibs_dmb *dmb,
			      struct dibs_client *client)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_session *s;
	struct ivpci_link *link;
	unsigned long flags;
	int slot, idx;
	u32 epoch;
	u64 token;
	u64 off;

	if (dmb->dmb_len > 1U << IVPCI_FOLIO_SHIFT)
		return -EINVAL;
	link = ivpci_link_by_gid(iv, &dmb->rgid);
	if (!link)
		return -ENETUNREACH;
	s = link->s;
	slot = -ENOSPC;
	if (ivpci_dmb_affordable(&s->dmbs, dmb->dmb_len))
		slot = ivpci_dmb_alloc(&s->dmbs, dmb->dmb_len);
	if (slot >= 0)
		off = s->dmbs.slot[slot].off;
	epoch = link->epoch;
	token = ivpci_token(get_random_u64(), link->peer.tag, slot);
	spin_unlock_bh(&link->lock);
	if (slot < 0) {
		ivpci_count(iv, IVPCI_DMB_ALLOC_FAILURES, 1);
		return slot;
	}

	/* the session stays as long as it has a DMB */
	idx = ida_alloc_max(&iv->idx, IVPCI_MAX_DMBS - 1, GFP_KERNEL);
	if (idx < 0) {
		spin_lock_bh(&link->lock);
		ivpci_dmb_retire(&s->dmbs, slot);
		spin_unlock_bh(&link->lock);
		ivpci_link_released(link);
		ivpci_count(iv, IVPCI_DMB_ALLOC_FAILURES, 1);
		return idx;
	}
	memset(s->win + off, 0, dmb->dmb_len);

	spin_lock_irqsave(&dibs->lock, flags);
	iv->dmb_at[idx] = FIELD_PREP(IVPCI_AT_LINK, link->index) |
			  FIELD_PREP(IVPCI_AT_SLOT, slot);
	s->slot_idx[slot] = idx + 1;
	dibs->dmb_clientid_arr[idx] = client->id;
	spin_unlock_irqrestore(&dibs->lock, flags);

	/* else SMC was told to end this, and the peer is not to find it */
	spin_lock_bh(&link->lock);
	if (link->up && link->epoch == epoch)
		ivpci_dmb_publish(&s->dmbs, slot, token);
	spin_unlock_bh(&link->lock);

	dmb->idx = idx;
	dmb->dmb_tok = token;
	dmb->cpu_addr = s->win + off;
	dmb->dma_addr = link->start + off;
	return 0;
}

static int ivpci_unregister_dmb(struct dibs_dev *dibs, struct dibs_dmb *dmb)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_link *link;
	unsigned long flags;
	u32 slot;

	if (dmb->idx >= IVPCI_MAX_DMBS)
		return -EINVAL;
	spin_lock_irqsave(&dibs->lock, flags);
	if (dibs->dmb_clientid_arr[dmb->idx] == NO_DIBS_CLIENT) {
		spin_unlock_irqrestore(&dibs->lock, flags);
		return -EINVAL;
	}
	link = &iv->links[FIELD_GET(IVPCI_AT_LINK, iv->dmb_at[dmb->idx])];
	slot = FIELD_GET(IVPCI_AT_SLOT, iv->dmb_at[dmb->idx]);
	dibs->dmb_clientid_arr[dmb->idx] = NO_DIBS_CLIENT;
	link->s->slot_idx[slot] = 0;
	spin_unlock_irqrestore(&dibs->lock, flags);
	ida_free(&iv->idx, dmb->idx);

	spin_lock_bh(&link->lock);
	ivpci_dmb_retire(&link->s->dmbs, slot);
	spin_unlock_bh(&link->lock);
	ivpci_link_released(link);
	return 0;
}

/* Announce what was stored in a DMB of the peer; the link is locked. */
static int ivpci_signal(struct ivpci_link *link, u32 slot, unsigned int index)
{
	struct ivpci *iv = link->iv;
	int rc;

	rc = ivpci_signal_post(&link->s->tx, slot, index & 15);
	switch (rc) {
	case -EPROTO:
		ivpci_link_fault(link, "it consumed signals that never were");
		return rc;
	case IVPCI_COALESCED:
		ivpci_count(iv, IVPCI_SIGNALS_COALESCED, 1);
		return 0;
	case IVPCI_RING:
		ivpci_link_ring(link);
		break;
	case IVPCI_POSTED:
		ivpci_count(iv, IVPCI_DOORBELLS_SUPPRESSED, 1);
		break;
	default:
		return rc;
	}
	ivpci_count(iv, IVPCI_SIGNALS_SENT, 1);
	return 0;
}

static int ivpci_move_data(struct dibs_dev *dibs, u64 dmb_tok,
			   unsigned int idx, bool sf, unsigned int offset,
			   void *data, unsigned int size)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_remote *remote = NULL;
	struct ivpci_link *link;
	bool released;
	int rc = 0;

	link = ivpci_link_by_token(iv, dmb_tok);
	if (!link)
		return -EINVAL;
	if (link->up)
		remote = ivpci_remote_hold(&link->s->remotes, dmb_tok);
	spin_unlock_bh(&link->lock);
	if (!remote)
		return -EINVAL;

	if ((u64)offset + size > remote->len)
		rc = -EINVAL;
	else
		ivpci_copy(link->s->win + remote->off + offset, data, size);

	spin_lock_bh(&link->lock);
	if (!rc && sf && link->up)
		rc = ivpci_signal(link, ivpci_token_slot(dmb_tok), idx);
	ivpci_remote_put(&link->s->remotes, remote);
	released = !link->s->remotes.held;
	spin_unlock_bh(&link->lock);
	if (released)
		ivpci_link_released(link);
	if (!rc)
		ivpci_count(iv, IVPCI_BYTES_MOVED, size);
	if (sf && READ_ONCE(iv->sender) != raw_smp_processor_id())
		WRITE_ONCE(iv->sender, raw_smp_processor_id());
	return rc;
}

/*
 * A window belongs to two guests whatever VLAN the connection's handshake went
 * over, so there is nothing to filter. SMC also asks with a reserved ID, to find
 * out whether we can do SMC-Dv2.
 */
static int ivpci_add_vlan_id(struct dibs_dev *dibs, u64 vlan_id)
{
	return 0;
}

static int ivpci_del_vlan_id(struct dibs_dev *dibs, u64 vlan_id)
{
	return 0;
}

static int ivpci_signal_event(struct dibs_dev *dibs, const uuid_t *rgid,
			      u32 trigger_irq, u32 event_code, u64 info)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_link *link;
	int rc;

	link = ivpci_link_by_gid(iv, rgid);
	if (!link)
		return -ENETUNREACH;
	rc = ivpci_event_post(&link->s->tx, event_code, info);
	if (rc == -EPROTO)
		ivpci_link_fault(link, "it consumed events that never were");
	if (!rc) {
		ivpci_link_ring(link);
		ivpci_count(iv, IVPCI_EVENTS_SENT, 1);
	}
	spin_unlock_bh(&link->lock);
	return rc;
}

static int ivpci_support_mmapped_rdmb(struct dibs_dev *dibs)
{
	return 1;
}

static int ivpci_attach_dmb(struct dibs_dev *dibs, struct dibs_dmb *dmb)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_remote *remote = NULL;
	struct ivpci_link *link;

	link = ivpci_link_by_token(iv, dmb->dmb_tok);
	if (!link)
		return -EINVAL;
	if (link->up)
		remote = ivpci_remote_hold(&link->s->remotes, dmb->dmb_tok);
	if (remote) {
		dmb->idx = ivpci_token_slot(dmb->dmb_tok);
		dmb->cpu_addr = link->s->win + remote->off;
		dmb->dma_addr = link->start + remote->off;
		dmb->dmb_len = remote->len;
	}
	spin_unlock_bh(&link->lock);
	return remote ? 0 : -EINVAL;
}

static int ivpci_detach_dmb(struct dibs_dev *dibs, u64 token)
{
	struct ivpci *iv = dibs->drv_priv;
	struct ivpci_remote *remote;
	struct ivpci_link *link;

	link = ivpci_link_by_token(iv, token);
	if (!link)
		return -EINVAL;
	remote = ivpci_remote_find(&link->s->remotes, token);
	if (remote)
		ivpci_remote_put(&link->s->remotes, remote);
	spin_unlock_bh(&link->lock);
	if (!remote)
		return -EINVAL;
	ivpci_link_released(link);
	return 0;
}

#define IVPCI_OPS_COMMON						\
	.get_fabric_id = ivpci_get_fabric_id,				\
	.query_remote_gid = ivpci_query_remote_gid,			\
	.max_dmbs = ivpci_max_dmbs,					\
	.register_dmb = ivpci_register_dmb,				\
	.unregister_dmb = ivpci_unregister_dmb,				\
	.move_data = ivpci_move_data,					\
	.add_vlan_id = ivpci_add_vlan_id,				\
	.del_vlan_id = ivpci_del_vlan_id,				\
	.signal_event = ivpci_signal_event

static const struct dibs_dev_ops ivpci_ops_copy = {
	IVPCI_OPS_COMMON,
};

static const struct dibs_dev_ops ivpci_ops_nocopy = {
	IVPCI_OPS_COMMON,
	.support_mmapped_rdmb = ivpci_support_mmapped_rdmb,
	.attach_dmb = ivpci_attach_dmb,
	.detach_dmb = ivpci_detach_dmb,
};

/**
 * ivpci_dibs_ops() - the operations
 * @nocopy: with those that let SMC write to the peer's DMBs itself?
 *
 * Return: the operations.
 */
const struct dibs_dev_ops *ivpci_dibs_ops(bool nocopy)
{
	return nocopy ? &ivpci_ops_nocopy : &ivpci_ops_copy;
}
