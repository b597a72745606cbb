/* SPDX-License-Identifier: GPL-2.0 */
/* Registers of ivshmem, and of ivsmc behind them: docs/device.md. */
#ifndef _IVPCI_REGS_H
#define _IVPCI_REGS_H

#define IVPCI_VENDOR_ID			0x1af4
#define IVPCI_DEVICE_ID			0x1110

/* The vendor-specific capability that tells ivsmc from ivshmem */
#define IVSMC_CAP_LAYOUT		3
#define IVSMC_CAP_SIGNATURE		4
#define IVSMC_CAP_REGS			8
#define IVSMC_SIGNATURE			0x4d535649	/* "IVSM" */

/* BAR0: ivshmem */
#define IVPCI_REG_POSITION		0x08
#define IVPCI_REG_DOORBELL		0x0c

/* BAR0: ivsmc, relative to where the capability says that they begin */
#define IVSMC_REG_SIGNATURE		0x00
#define IVSMC_REG_VERSION		0x04
#define IVSMC_REG_MAX_PEERS		0x08
#define IVSMC_REG_VECTORS		0x0c
#define IVSMC_REG_GID			0x10
#define IVSMC_REG_FABRIC		0x20
#define IVSMC_REG_WINDOW_SHIFT		0x24
#define IVSMC_REG_LINK_TABLE		0x28
#define IVSMC_REG_LINK_STRIDE		0x2c
#define IVSMC_REG_DOORBELLS		0x30
#define IVSMC_REG_DOORBELL_STRIDE	0x34

#define IVSMC_REGS_VERSION		1

/* An entry of the link table */
#define IVSMC_LINK_STATE		0x00
#define IVSMC_LINK_GENERATION		0x04
#define IVSMC_LINK_SIDE			0x08
#define IVSMC_LINK_POSITION		0x0c
#define IVSMC_LINK_GID			0x10
#define IVSMC_LINK_VECTORS		0x20
#define IVSMC_LINK_WINDOW_SHIFT		0x24
#define IVSMC_LINK_CLAIM		0x28
#define IVSMC_LINK_SIZE			0x2c

#define IVSMC_STATE_UP			1

#endif /* _IVPCI_REGS_H */
