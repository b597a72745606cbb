/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What attach.c, dmb.c and ring.c use of the kernel, for user space. Each look
 * at memory that the peer can write gives the peer a turn: fuzz_peer().
 */
#ifndef _IVPCI_FUZZ_KERNEL_H
#define _IVPCI_FUZZ_KERNEL_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian machines only"
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef u32 __le32;
typedef u64 __le64;

#define cpu_to_le32(x)	((__le32)(x))
#define cpu_to_le64(x)	((__le64)(x))
#define le32_to_cpu(x)	((u32)(x))
#define le64_to_cpu(x)	((u64)(x))

typedef struct {
	u8 b[16];
} uuid_t;

static inline bool uuid_equal(const uuid_t *one, const uuid_t *other)
{
	return !memcmp(one, other, sizeof(*one));
}

static inline void put_unaligned_le32(u32 value, void *to)
{
	memcpy(to, &value, sizeof(value));
}

/* The errors that are used, as Linux has them */
#define ENOMEM		12
#define EBUSY		16
#define EINVAL		22
#define ENOSPC		28
#define EPROTO		71

#define SZ_16K		0x4000
#define SZ_64K		0x10000
#define HZ		250UL
#define GFP_KERNEL	0

#define GENMASK_ULL(high, low)	((~0ULL >> (63 - (high))) & (~0ULL << (low)))
#define GENMASK(high, low)	((u32)GENMASK_ULL(high, low))
#define FIELD_GET(mask, reg)	(((reg) & (mask)) / ((mask) & -(mask)))
#define FIELD_PREP(mask, value)	(((value) * ((mask) & -(mask))) & (mask))

#define min(a, b)	((a) < (b) ? (a) : (b))
#define max(a, b)	((a) > (b) ? (a) : (b))

#define IS_ALIGNED(x, to)	(((x) & ((to) - 1)) == 0)

static inline bool is_power_of_2(unsigned long n)
{
	return n && !(n & (n - 1));
}

/* The first byte that is not @byte, or NULL */
static inline const void *memchr_inv(const void *start, int byte, size_t len)
{
	const u8 *at = start;

	for (; len; at++, len--)
		if (*at != (u8)byte)
			return at;
	return NULL;
}

/* The peer may write to the window now. */
void fuzz_peer(void);

#define barrier()	__asm__ __volatile__("" ::: "memory")
#define virt_mb()	fuzz_peer()
#define virt_rmb()	fuzz_peer()

#define READ_ONCE(x) ({							\
	fuzz_peer();							\
	*(const volatile __typeof__(x) *)&(x);				\
})
#define WRITE_ONCE(x, value) ({						\
	*(volatile __typeof__(x) *)&(x) = (value);			\
	fuzz_peer();							\
})
#define virt_load_acquire(at)		READ_ONCE(*(at))
#define virt_store_release(at, value)	WRITE_ONCE(*(at), value)

#define BITS	(8 * sizeof(unsigned long))

static inline unsigned long *bitmap_alloc(unsigned long bits, int flags)
{
	(void)flags;
	return malloc((bits + BITS - 1) / BITS * sizeof(unsigned long));
}

static inline void bitmap_free(unsigned long *map)
{
	free(map);
}

static inline bool bitmap_test(const unsigned long *map, unsigned long at)
{
	return map[at / BITS] >> at % BITS & 1;
}

static inline void bitmap_set(unsigned long *map, unsigned long at,
			      unsigned long len)
{
	for (; len; at++, len--)
		map[at / BITS] |= 1UL << at % BITS;
}

static inline void bitmap_clear(unsigned long *map, unsigned long at,
				unsigned long len)
{
	for (; len; at++, len--)
		map[at / BITS] &= ~(1UL << at % BITS);
}

static inline void bitmap_fill(unsigned long *map, unsigned long bits)
{
	bitmap_set(map, 0, bits);
}

static inline unsigned long bitmap_weight(const unsigned long *map,
					  unsigned long bits)
{
	unsigned long at, weight = 0;

	for (at = 0; at < bits; at++)
		weight += bitmap_test(map, at);
	return weight;
}

/* @len zeros from @first on, where @mask + 1 divides; @bits or more: none */
static inline unsigned long
bitmap_find_next_zero_area(unsigned long *map, unsigned long bits,
			   unsigned long first, unsigned int len,
			   unsigned long mask)
{
	unsigned long at, n;

	for (at = (first + mask) & ~mask; at + len <= bits; at += mask + 1) {
		for (n = 0; n < len && !bitmap_test(map, at + n); n++)
			;
		if (n == len)
			return at;
	}
	return bits;
}

#endif /* _IVPCI_FUZZ_KERNEL_H */
