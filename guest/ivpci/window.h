/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The format of a window: memory that exactly two guests map.
 * docs/window.md is the specification; this header is its transcription.
 */
#ifndef _IVPCI_WINDOW_H
#define _IVPCI_WINDOW_H

#include <linux/build_bug.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/types.h>
#include <linux/uuid.h>

#define IVPCI_MAGIC		0x6e6977636d737669ULL	/* "ivsmcwin" */
#define IVPCI_VERSION		1

#define IVPCI_CTRL_SIZE		SZ_64K
#define IVPCI_CTRL_AREAS	(2 * IVPCI_CTRL_SIZE)
#define IVPCI_SHIFT_MIN		21	/* of a window's size: 2 MiB */
#define IVPCI_SHIFT_MAX		40

#define IVPCI_SLOTS		1024	/* DMBs per side */
#define IVPCI_SIGNALS		1024	/* entries of a signal ring */
#define IVPCI_EVENTS		32	/* entries of an event ring */
#define IVPCI_VECTORS		16	/* vectors a side can have */
#define IVPCI_LINKS		64	/* links a device can have */

#define IVPCI_DMB_MIN		SZ_16K
#define IVPCI_DMB_OFF_SHIFT	12	/* unit of a directory entry's offset */

/* Stores up to this size are made of 8-byte words, hence cannot tear there. */
#define IVPCI_WORDS_MAX		128

#define IVPCI_TOKEN_SLOT	GENMASK_ULL(15, 0)	/* slot + 1 */
#define IVPCI_TOKEN_TAG		GENMASK_ULL(23, 16)	/* tag of the user */

#define IVPCI_SIGNAL_SLOT	GENMASK(15, 0)
#define IVPCI_SIGNAL_INDEX	GENMASK(19, 16)

/**
 * struct ivpci_event - an entry of an event ring
 * @code: SMC's event code
 * @res: zero
 * @info: SMC's event information
 */
struct ivpci_event {
	__le32 code;
	__le32 res;
	__le64 info;
};

/**
 * struct ivpci_dirent - an entry of a DMB directory
 * @token: names the DMB; 0 if the slot is not in use
 * @off: where the DMB begins in the window, in units of 4 KiB
 * @len: its size in bytes
 */
struct ivpci_dirent {
	__le64 token;
	__le32 off;
	__le32 len;
};

/**
 * struct ivpci_ctrl - a side's control area; only that side writes it
 * @magic: IVPCI_MAGIC
 * @version: IVPCI_VERSION
 * @epoch: names this attachment of the side; 0: not attached
 * @peer_epoch: the peer's epoch that this side accepts; 0: none
 * @position: the side's IVPosition
 * @vector: the MSI-X vector that the peer shall ring
 * @window_shift: log2 of the window's size
 * @gid: the side's GID
 * @slots: IVPCI_SLOTS
 * @tag: what the peer shall put in the tokens of the DMBs it gives this side
 * @signal_prod: producer index of this side's signal ring
 * @signal_cons: consumer index in the peer's signal ring
 * @signal_wake: ring this side when the peer's signal_prod passes this
 * @event_prod: producer index of this side's event ring
 * @event_cons: consumer index in the peer's event ring
 * @events: this side's event ring
 * @signals: this side's signal ring
 * @dir: the DMBs that this side owns
 * @attached: tokens of the peer's DMBs that this side uses, by the peer's slot
 */
struct ivpci_ctrl {
	__le64 magic;
	__le32 version;
	__le32 epoch;
	__le32 peer_epoch;
	__le32 position;
	__le32 vector;
	__le32 window_shift;
	uuid_t gid;
	__le32 slots;
	__le32 tag;
	u8 res0[0x48];
	__le32 signal_prod;
	u8 res1[0x3c];
	__le32 signal_cons;
	__le32 signal_wake;
	u8 res2[0x38];
	__le32 event_prod;
	u8 res3[0x3c];
	__le32 event_cons;
	u8 res4[0x2bc];
	struct ivpci_event events[IVPCI_EVENTS];
	u8 res5[0xa00];
	__le32 signals[IVPCI_SIGNALS];
	struct ivpci_dirent dir[IVPCI_SLOTS];
	__le64 attached[IVPCI_SLOTS];
	u8 res6[0x8000];
};

static_assert(offsetof(struct ivpci_ctrl, gid) == 0x20);
static_assert(offsetof(struct ivpci_ctrl, tag) == 0x34);
static_assert(offsetof(struct ivpci_ctrl, signal_prod) == 0x80);
static_assert(offsetof(struct ivpci_ctrl, signal_cons) == 0xc0);
static_assert(offsetof(struct ivpci_ctrl, event_prod) == 0x100);
static_assert(offsetof(struct ivpci_ctrl, event_cons) == 0x140);
static_assert(offsetof(struct ivpci_ctrl, events) == 0x400);
static_assert(offsetof(struct ivpci_ctrl, signals) == 0x1000);
static_assert(offsetof(struct ivpci_ctrl, dir) == 0x2000);
static_assert(offsetof(struct ivpci_ctrl, attached) == 0x6000);
static_assert(sizeof(struct ivpci_ctrl) == IVPCI_CTRL_SIZE);

#endif /* _IVPCI_WINDOW_H */
