/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _IVPCI_H
#define _IVPCI_H

#include <linux/bitfield.h>
#include <linux/bitmap.h>
#include <linux/completion.h>
#include <linux/dibs.h>
#include <linux/hrtimer.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/memremap.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "attach.h"
#include "dmb.h"
#include "ring.h"

#define IVPCI_NAME		"ivpci"

#define IVPCI_MAX_DMBS		8192	/* per device; SMC has 8 bytes for each */
#define IVPCI_FOLIO_SHIFT	20	/* of a window's pages; no DMB is larger */
#define IVPCI_PLAIN_FABRIC	0xff00	/* CHID on ivshmem, which has none */

/**
 * enum ivpci_counter - what is counted; debugfs.c has the names
 * @IVPCI_INTERRUPTS: interrupts taken
 * @IVPCI_SIGNALS_SENT: signals posted
 * @IVPCI_SIGNALS_COALESCED: signals that one before them stood for
 * @IVPCI_SIGNALS_RECEIVED: signals taken
 * @IVPCI_DOORBELLS: doorbells rung, for whatever reason
 * @IVPCI_DOORBELLS_SUPPRESSED: signals posted while the peer was awake
 * @IVPCI_EVENTS_SENT: software events posted
 * @IVPCI_EVENTS_RECEIVED: software events taken
 * @IVPCI_BYTES_MOVED: bytes that move_data copied
 * @IVPCI_DMB_ALLOC_FAILURES: DMBs that could not be had
 * @IVPCI_POLLS: looks at the rings by the poller
 * @IVPCI_POLL_HITS: those that found something
 * @IVPCI_GUARDS: looks at the rings by the timer in the poller's place
 * @IVPCI_LINK_UPS: times that a link went up
 * @IVPCI_LINK_DOWNS: times that a link went down
 * @IVPCI_PEER_FAULTS: times that it did because of what the peer wrote
 * @IVPCI_COUNTERS: how many counters there are
 */
enum ivpci_counter {
	IVPCI_INTERRUPTS,
	IVPCI_SIGNALS_SENT,
	IVPCI_SIGNALS_COALESCED,
	IVPCI_SIGNALS_RECEIVED,
	IVPCI_DOORBELLS,
	IVPCI_DOORBELLS_SUPPRESSED,
	IVPCI_EVENTS_SENT,
	IVPCI_EVENTS_RECEIVED,
	IVPCI_BYTES_MOVED,
	IVPCI_DMB_ALLOC_FAILURES,
	IVPCI_POLLS,
	IVPCI_POLL_HITS,
	IVPCI_GUARDS,
	IVPCI_LINK_UPS,
	IVPCI_LINK_DOWNS,
	IVPCI_PEER_FAULTS,
	IVPCI_COUNTERS,
};

struct ivpci_stats {
	u64 counter[IVPCI_COUNTERS];
};

/**
 * enum ivpci_state - the states of a link, see docs/window.md
 * @IVPCI_DOWN: there is no window
 * @IVPCI_ATTACHING: our epoch is published, the peer has not accepted it
 * @IVPCI_UP: both sides have accepted each other
 * @IVPCI_ENDING: SMC was told; waits until it has let go
 */
enum ivpci_state {
	IVPCI_DOWN,
	IVPCI_ATTACHING,
	IVPCI_UP,
	IVPCI_ENDING,
};

/**
 * struct ivpci_session - what exists while a window is mapped
 * @pgmap: the window's struct pages
 * @win: the window
 * @own: our control area in it
 * @peer: the peer's control area in it
 * @tx: producer of our rings; under the link's lock
 * @rx: consumer of the peer's rings; under dibs->lock
 * @dmbs: our DMBs; under the link's lock
 * @remotes: the peer's DMBs; under the link's lock
 * @cached: the window is mapped write-back
 * @slot_idx: DMB index + 1 of our slots, 0: none; under dibs->lock
 */
struct ivpci_session {
	struct dev_pagemap pgmap;
	void *win;
	struct ivpci_ctrl *own;
	const struct ivpci_ctrl *peer;
	struct ivpci_tx tx;
	struct ivpci_rx rx;
	struct ivpci_dmbs dmbs;
	struct ivpci_remotes remotes;
	bool cached;
	u32 slot_idx[IVPCI_SLOTS];
};

/**
 * struct ivpci_link - what connects us to one peer
 * @iv: the device
 * @index: of the link
 * @work: the state machine: all but @lock's fields belong to it
 * @state: of the state machine
 * @look: read the registers before the next step; set in any context
 * @there: the window is there, as the registers last said
 * @generation: what we claimed, on ivsmc
 * @side: ours
 * @shift: log2 of the window's size
 * @start: physical address of the window
 * @epoch: ours
 * @since: when the link last began or ended (jiffies)
 * @backoff: how long it had to wait when it last ended (jiffies)
 * @not_before: when to begin again (jiffies)
 * @told: when SMC was last told that the peer is gone (jiffies)
 * @why: why there is no window, or why the peer was last found not to be fit
 * @faulty: the peer was at fault; set in any context
 * @peer: the peer's header as accepted
 * @peer_device: the words of the GID of the peer's device, on ivsmc
 * @peer_vectors: vectors that the peer has, on ivsmc
 * @event_window: begin of the second in which @event_count events came
 * @event_count: see there; both under dibs->lock
 * @lock: protects all below, and in @s what is said there; also move_data
 * @up: the link can be used
 * @s: the session; NULL while there is no window
 */
struct ivpci_link {
	struct ivpci *iv;
	unsigned int index;
	struct delayed_work work;
	enum ivpci_state state;
	bool look;
	bool there;
	u32 generation;
	u32 side;
	u32 shift;
	phys_addr_t start;
	u32 epoch;
	unsigned long since;
	unsigned long backoff;
	unsigned long not_before;
	unsigned long told;
	const char *why;
	bool faulty;
	struct ivpci_header peer;
	u32 peer_device[4];
	u32 peer_vectors;
	unsigned long event_window;
	unsigned int event_count;
	spinlock_t lock; /* see above */
	bool up;
	struct ivpci_session *s;
};

/**
 * struct ivpci_usage - who uses what of a link
 * @dmbs: DMBs of ours that SMC has
 * @remotes: DMBs of the peer that we use
 * @folios: how many folios pipes and the like have references of
 */
struct ivpci_usage {
	unsigned int dmbs;
	unsigned int remotes;
	unsigned int folios;
};

#define IVPCI_USAGE	"%u buffers of sockets and up to %u MiB of data in pipes"

/**
 * struct ivpci_irq - a vector
 * @iv: the device
 * @links: the links whose peers ring it
 */
struct ivpci_irq {
	struct ivpci *iv;
	DECLARE_BITMAP(links, IVPCI_LINKS);
};

/**
 * struct ivpci - a device
 * @pdev: the PCI device
 * @dibs: the DIBS device; its lock also protects all that receives
 * @bar0: registers
 * @regs: ivsmc's registers in BAR0; NULL on ivshmem
 * @table: the link table in BAR0, on ivsmc
 * @table_stride: bytes per link
 * @doorbells: the doorbells in BAR0, on ivsmc
 * @doorbell_stride: bytes per link
 * @window_shift: log2 of the windows' pitch in BAR2
 * @position: our IVPosition
 * @device_gid: the words of DeviceGID, on ivsmc
 * @fabric: our CHID
 * @vectors: MSI-X vectors we have
 * @irq: they
 * @leaving: the driver is being removed, or starts anew
 * @paused: the system is going to sleep
 * @restart: removes and probes, when the device has become another one
 * @removal: takes the DIBS device away from SMC
 * @removed: SMC has let go of it
 * @ref: held while bound, and for @restart
 * @wq: runs the links' state machines
 * @scan: looks after all links
 * @scanned: when it last did (jiffies)
 * @quiet: woken when a link has ended
 * @nlinks: links in @links
 * @links: the links
 * @accept: held while a link decides whether to accept a peer
 * @idx: DMB indices in use
 * @dmb_at: link and slot of a DMB index
 * @turn: the link whose rings come first; under dibs->lock
 * @receiving: links whose rings are consumed; under dibs->lock
 * @attaching: links that wait for a peer; under dibs->lock
 * @poller: the thread that polls
 * @guard: expires when @poller has given way for too long
 * @handover: @poller has to poll; set by the interrupt
 * @polling: doorbells are off since @poller polls; under dibs->lock
 * @guarded: @guard runs; under dibs->lock
 * @activity: signals and events taken; under dibs->lock
 * @poll_ns: how long to poll without success
 * @asleep_since: when @poller went to sleep
 * @away_since: when @poller gave way, 0 when it is back; under dibs->lock
 * @sender: the CPU on which SMC last sent something
 * @debugfs: folder
 * @stats: counters
 */
struct ivpci {
	struct pci_dev *pdev;
	struct dibs_dev *dibs;
	void __iomem *bar0;
	void __iomem *regs;
	void __iomem *table;
	u32 table_stride;
	void __iomem *doorbells;
	u32 doorbell_stride;
	u32 window_shift;
	u32 position;
	u32 device_gid[4];
	u16 fabric;
	unsigned int vectors;
	struct ivpci_irq irq[IVPCI_VECTORS];
	bool leaving;
	bool paused;
	struct work_struct restart;
	struct work_struct removal;
	struct completion removed;
	refcount_t ref;
	struct workqueue_struct *wq;
	struct delayed_work scan;
	unsigned long scanned;
	wait_queue_head_t quiet;
	unsigned int nlinks;
	struct ivpci_link *links;
	struct mutex accept; /* two links must not get the same peer */
	struct ida idx;
	u32 dmb_at[IVPCI_MAX_DMBS];
	unsigned int turn;
	DECLARE_BITMAP(receiving, IVPCI_LINKS);
	DECLARE_BITMAP(attaching, IVPCI_LINKS);
	struct task_struct *poller;
	struct hrtimer guard;
	bool handover;
	bool polling;
	bool guarded;
	u64 activity;
	u64 poll_ns;
	u64 asleep_since;
	u64 away_since;
	int sender;
	struct dentry *debugfs;
	struct ivpci_stats __percpu *stats;
};

static inline void ivpci_count(struct ivpci *iv, enum ivpci_counter counter,
			       u64 n)
{
	this_cpu_add(iv->stats->counter[counter], n);
}

static inline bool ivpci_stopping(struct ivpci *iv)
{
	return READ_ONCE(iv->leaving) || READ_ONCE(iv->paused);
}

static inline bool ivpci_used(const struct ivpci_usage *use)
{
	return use->dmbs || use->remotes || use->folios;
}

/* The vector that a link's peer shall ring */
static inline u32 ivpci_vector(const struct ivpci *iv, unsigned int link)
{
	u32 shared = iv->vectors - 1;

	return shared ? 1 + link % shared : 0;
}

/* main.c */
extern int ivpci_side;
void ivpci_follow(struct ivpci *iv);

/* window.c */
u32 ivpci_link_reg(struct ivpci_link *link, u32 reg);
bool ivpci_window_there(struct ivpci_link *link);
unsigned int ivpci_window_busy(struct ivpci_link *link);
const char *ivpci_window_open(struct ivpci_link *link);
void ivpci_window_close(struct ivpci_link *link);

/* link.c */
void ivpci_link_work(struct work_struct *work);
void ivpci_link_kick(struct ivpci_link *link);
void ivpci_link_fault(struct ivpci_link *link, const char *why);
void ivpci_link_ring(struct ivpci_link *link);
bool ivpci_peer_there(struct ivpci_link *link);
void ivpci_link_released(struct ivpci_link *link);
const char *ivpci_state_name(enum ivpci_state state);

/* links.c */
void ivpci_link_usage(struct ivpci_link *link, struct ivpci_usage *use);
int ivpci_links_init(struct ivpci *iv);
void ivpci_links_scan(struct ivpci *iv);
bool ivpci_links_leave(struct ivpci *iv, bool unmapped, unsigned long most);
void ivpci_links_stop(struct ivpci *iv);
void ivpci_links_exit(struct ivpci *iv);

/* poll.c */
int ivpci_poll_start(struct ivpci *iv);
void ivpci_poll_stop(struct ivpci *iv);
void ivpci_poll_kick(struct ivpci *iv);
irqreturn_t ivpci_irq_doorbell(int irq, void *data);
irqreturn_t ivpci_irq_change(int irq, void *data);
void ivpci_deliver(struct ivpci *iv, const struct dibs_event *event);

/* dibs.c */
const struct dibs_dev_ops *ivpci_dibs_ops(bool nocopy);

/* debugfs.c */
extern const struct attribute_group *ivpci_groups[];
void ivpci_debugfs_init(void);
void ivpci_debugfs_exit(void);
void ivpci_debugfs_add(struct ivpci *iv);
void ivpci_debugfs_del(struct ivpci *iv);

#endif /* _IVPCI_H */
