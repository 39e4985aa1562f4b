/* Shared by the sources of the simulated host's nvidia-smi. */
#ifndef GPUSPAWNER_NVIDIA_SMI_H
#define GPUSPAWNER_NVIDIA_SMI_H

#include "state.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* Exit codes are NVML's, as with the real one. */
enum {
    EXIT_BAD_ARGUMENT = 2, EXIT_NOT_FOUND = 6, EXIT_NO_DRIVER = 9, EXIT_GPU_LOST = 15,
    EXIT_UNKNOWN = 255
};

#define VALUE_SIZE 256

struct options {
    const char *query_gpu, *query_apps, *format, *id;
    int list, version, help, topology;
};

int lost(const struct gpu *gpu);
int needs_reset(const struct gpu *gpu);
int index_of(const struct state *state, const struct gpu *gpu);
int utilization(const struct gpu *gpu);
const char *compute_mode_name(const struct gpu *gpu);
/* Whether -i names this GPU, by index, UUID or bus id; without -i it names them all. */
int chosen(const struct options *options, const struct state *state, const struct gpu *gpu);
int has_format(const struct options *options, const char *word);
/* Writes at most VALUE_SIZE bytes. */
void put_process_name(char *out, unsigned pid);

/* These print, and return the command's exit code. */
int report_lost(const struct gpu *gpu);
int query_gpus(const struct options *options, const struct state *state);
int print_topology(const struct state *state);
int query_processes(const struct options *options, const struct state *state);

#endif
