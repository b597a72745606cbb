/* SPDX-License-Identifier: GPL-2.0 */
/* Signal rings and event rings of a window. No device, no locks. */
#ifndef _IVPCI_RING_H
#define _IVPCI_RING_H

#include "window.h"

/**
 * struct ivpci_tx - the producer of our rings
 * @own: our control area
 * @peer: the peer's control area
 * @prod: signals posted; the ring has the low 32 bits
 * @event_prod: events posted
 * @posted: one more than the index of each slot's last signal, 0: none
 * @index: the signal index of each slot's last signal
 */
struct ivpci_tx {
	struct ivpci_ctrl *own;
	const struct ivpci_ctrl *peer;
	u64 prod;
	u32 event_prod;
	u64 posted[IVPCI_SLOTS];
	u8 index[IVPCI_SLOTS];
};

/**
 * struct ivpci_rx - the consumer of the peer's rings
 * @own: our control area
 * @peer: the peer's control area
 * @cons: signals consumed
 * @event_cons: events consumed
 */
struct ivpci_rx {
	struct ivpci_ctrl *own;
	const struct ivpci_ctrl *peer;
	u32 cons;
	u32 event_cons;
};

/**
 * enum ivpci_posted - what became of a signal
 * @IVPCI_COALESCED: the peer has yet to consume one for the same slot
 * @IVPCI_POSTED: posted; the peer is awake
 * @IVPCI_RING: posted; the peer's doorbell has to be rung
 */
enum ivpci_posted {
	IVPCI_COALESCED,
	IVPCI_POSTED,
	IVPCI_RING,
};

void ivpci_tx_init(struct ivpci_tx *tx, struct ivpci_ctrl *own,
		   const struct ivpci_ctrl *peer);
int ivpci_signal_post(struct ivpci_tx *tx, u32 slot, u32 index);
int ivpci_event_post(struct ivpci_tx *tx, u32 code, u64 info);

void ivpci_rx_init(struct ivpci_rx *rx, struct ivpci_ctrl *own,
		   const struct ivpci_ctrl *peer);
int ivpci_signal_take(struct ivpci_rx *rx, u32 *signals, u32 max);
int ivpci_event_take(struct ivpci_rx *rx, u32 *code, u64 *info);
bool ivpci_rx_arm(struct ivpci_rx *rx);
void ivpci_rx_disarm(struct ivpci_rx *rx);

/**
 * ivpci_rx_pending() - is there something to take?
 * @rx: the consumer
 *
 * Return: true if the peer posted a signal or an event that was not taken.
 */
static inline bool ivpci_rx_pending(const struct ivpci_rx *rx)
{
	return le32_to_cpu(READ_ONCE(rx->peer->signal_prod)) != rx->cons ||
	       le32_to_cpu(READ_ONCE(rx->peer->event_prod)) != rx->event_cons;
}

#endif /* _IVPCI_RING_H */
