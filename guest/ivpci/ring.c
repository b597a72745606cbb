// SPDX-License-Identifier: GPL-2.0
/*
 * Signal rings and event rings of a window.
 *
 * Whatever the peer wrote is read once and checked here; what we wrote is
 * never read back, as the peer can write to all of the window.
 *
 * Barriers are virt_*(): the peer runs on another CPU even if we have only one.
 */

#include <linux/bitfield.h>
#include <linux/errno.h>
#include <linux/string.h>

#include "ring.h"

/**
 * ivpci_tx_init() - begin to produce
 * @tx: the producer
 * @own: our control area, cleared
 * @peer: the peer's control area
 */
void ivpci_tx_init(struct ivpci_tx *tx, struct ivpci_ctrl *own,
		   const struct ivpci_ctrl *peer)
{
	memset(tx, 0, sizeof(*tx));
	tx->own = own;
	tx->peer = peer;
}

/**
 * ivpci_signal_post() - tell the peer that one of its DMBs has news
 * @tx: the producer
 * @slot: slot of the DMB
 * @index: signal index, below 16
 *
 * The stores that the signal announces come before the call.
 *
 * Return: one of enum ivpci_posted; -EBUSY if the ring is full, which takes
 * more than one signal index per DMB; -EPROTO if the peer makes no sense.
 */
int ivpci_signal_post(struct ivpci_tx *tx, u32 slot, u32 index)
{
	u32 cons, used, entry;

	virt_mb(); /* the stores before; pairs with ivpci_signal_take() */
	cons = le32_to_cpu(READ_ONCE(tx->peer->signal_cons));
	used = (u32)tx->prod - cons;
	if (used > IVPCI_SIGNALS)
		return -EPROTO;
	if (tx->posted[slot] > tx->prod - used && tx->index[slot] == index)
		return IVPCI_COALESCED;
	if (used == IVPCI_SIGNALS)
		return -EBUSY;

	entry = FIELD_PREP(IVPCI_SIGNAL_SLOT, slot) |
		FIELD_PREP(IVPCI_SIGNAL_INDEX, index);
	WRITE_ONCE(tx->own->signals[(u32)tx->prod % IVPCI_SIGNALS],
		   cpu_to_le32(entry));
	tx->prod++;
	tx->posted[slot] = tx->prod;
	tx->index[slot] = index;
	/* release: who sees the index sees the entry */
	virt_store_release(&tx->own->signal_prod, cpu_to_le32((u32)tx->prod));

	virt_mb(); /* signal_prod before signal_wake; pairs with ivpci_rx_arm() */
	if (le32_to_cpu(READ_ONCE(tx->peer->signal_wake)) == (u32)tx->prod - 1)
		return IVPCI_RING;
	return IVPCI_POSTED;
}

/**
 * ivpci_event_post() - send the peer an event
 * @tx: the producer
 * @code: SMC's event code
 * @info: SMC's event information
 *
 * The peer has to be rung after each event.
 *
 * Return: 0; -EBUSY if the ring is full; -EPROTO if the peer makes no sense.
 */
int ivpci_event_post(struct ivpci_tx *tx, u32 code, u64 info)
{
	struct ivpci_event *event = &tx->own->events[tx->event_prod %
						     IVPCI_EVENTS];
	u32 used;

	used = tx->event_prod;
	/* acquire: the entry was read before it is used again */
	used -= le32_to_cpu(virt_load_acquire(&tx->peer->event_cons));
	if (used > IVPCI_EVENTS)
		return -EPROTO;
	if (used == IVPCI_EVENTS)
		return -EBUSY;

	WRITE_ONCE(event->code, cpu_to_le32(code));
	WRITE_ONCE(event->info, cpu_to_le64(info));
	tx->event_prod++;
	/* release: who sees the index sees the entry */
	virt_store_release(&tx->own->event_prod, cpu_to_le32(tx->event_prod));
	return 0;
}

/**
 * ivpci_rx_init() - begin to consume
 * @rx: the consumer
 * @own: our control area, cleared
 * @peer: the peer's control area
 */
void ivpci_rx_init(struct ivpci_rx *rx, struct ivpci_ctrl *own,
		   const struct ivpci_ctrl *peer)
{
	memset(rx, 0, sizeof(*rx));
	rx->own = own;
	rx->peer = peer;
}

/**
 * ivpci_signal_take() - consume signals
 * @rx: the consumer
 * @signals: takes the entries as the peer wrote them
 * @max: at most so many
 *
 * The peer may post the same signals again as soon as this returns; look after
 * the DMBs afterwards.
 *
 * Return: how many there were; -EPROTO if the peer makes no sense.
 */
int ivpci_signal_take(struct ivpci_rx *rx, u32 *signals, u32 max)
{
	u32 n, i;

	/* acquire: the entries are the index's */
	n = le32_to_cpu(virt_load_acquire(&rx->peer->signal_prod)) - rx->cons;
	if (!n)
		return 0;
	if (n > IVPCI_SIGNALS)
		return -EPROTO;
	if (n > max)
		n = max;
	for (i = 0; i < n; i++) {
		u32 at = (rx->cons + i) % IVPCI_SIGNALS;

		signals[i] = le32_to_cpu(READ_ONCE(rx->peer->signals[at]));
	}
	rx->cons += n;
	/* release: the entries were read before they are used again */
	virt_store_release(&rx->own->signal_cons, cpu_to_le32(rx->cons));
	virt_mb(); /* then the DMBs; pairs with ivpci_signal_post() */
	return n;
}

/**
 * ivpci_event_take() - consume an event
 * @rx: the consumer
 * @code: takes SMC's event code
 * @info: takes SMC's event information
 *
 * Return: 1 if there was one, else 0; -EPROTO if the peer makes no sense.
 */
int ivpci_event_take(struct ivpci_rx *rx, u32 *code, u64 *info)
{
	const struct ivpci_event *event = &rx->peer->events[rx->event_cons %
							    IVPCI_EVENTS];
	u32 n;

	/* acquire: the entry is the index's */
	n = le32_to_cpu(virt_load_acquire(&rx->peer->event_prod));
	n -= rx->event_cons;
	if (!n)
		return 0;
	if (n > IVPCI_EVENTS)
		return -EPROTO;
	*code = le32_to_cpu(READ_ONCE(event->code));
	*info = le64_to_cpu(READ_ONCE(event->info));
	rx->event_cons++;
	/* release: the entry was read before it is used again */
	virt_store_release(&rx->own->event_cons, cpu_to_le32(rx->event_cons));
	return 1;
}

/**
 * ivpci_rx_arm() - ask the peer to ring for its next signal
 * @rx: the consumer
 *
 * Return: true if something has come meanwhile, for which it may not ring.
 */
bool ivpci_rx_arm(struct ivpci_rx *rx)
{
	WRITE_ONCE(rx->own->signal_wake, cpu_to_le32(rx->cons));
	virt_mb(); /* signal_wake before signal_prod; pairs with the producer */
	return ivpci_rx_pending(rx);
}

/**
 * ivpci_rx_disarm() - ask the peer not to ring for signals
 * @rx: the consumer
 */
void ivpci_rx_disarm(struct ivpci_rx *rx)
{
	WRITE_ONCE(rx->own->signal_wake, cpu_to_le32(rx->cons - 1));
}
