// SPDX-License-Identifier: GPL-2.0
/* Runs the target on files, where there is no libFuzzer to do it. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		uint8_t *data;
		long size;

		/* The one that it fails at is the last one */
		fprintf(stderr, "%s\n", argv[i]);
		if (!file || fseek(file, 0, SEEK_END)) {
			perror(argv[i]);
			return 1;
		}
		size = ftell(file);
		rewind(file);
		/* Of its size alone, so that nothing behind it is read */
		data = malloc(size ? size : 1);
		if (!data || fread(data, 1, size, file) != (size_t)size) {
			perror(argv[i]);
			return 1;
		}
		fclose(file);
		LLVMFuzzerTestOneInput(data, size);
		free(data);
	}
	return 0;
}
