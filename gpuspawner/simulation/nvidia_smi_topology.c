/* nvidia-smi topo -m: how the GPUs are connected. */
#include "nvidia_smi.h"

static void put_connection(char *out, const struct gpu *a, const struct gpu *b)
{
    int links = links_between(a, b), level = distance(a, b);
    if (a == b)
        strcpy(out, " X ");
    else if (links)
        snprintf(out, VALUE_SIZE, "NV%d", links);
    else
        strcpy(out, level == 10 ? "PIX" : level == 40 ? "NODE" : level == 50 ? "SYS" : "N/A");
}

int print_topology(const struct state *state)
{
    char value[VALUE_SIZE];
    for (int i = 0; i < state->gpu_count; i++)
        printf("\tGPU%d", i);
    printf("\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n");
    for (int i = 0; i < state->gpu_count; i++) {
        const struct gpu *gpu = &state->gpus[i];
        printf("GPU%d", i);
        for (int j = 0; j < state->gpu_count; j++) {
            put_connection(value, gpu, &state->gpus[j]);
            printf("\t%s", value);
        }
        if (gpu->socket == ABSENT)
            printf("\tN/A\tN/A\t\tN/A\n");
        else
            printf("\t%d-%d\t%d\t\tN/A\n", gpu->socket * 32, gpu->socket * 32 + 31, gpu->socket);
    }
    printf("\nLegend:\n\n"
           "  X    = Self\n"
           "  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes"
           " (e.g., QPI/UPI)\n"
           "  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges"
           " within a NUMA node\n"
           "  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)\n"
           "  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host"
           " Bridge)\n"
           "  PIX  = Connection traversing at most a single PCIe bridge\n"
           "  NV#  = Connection traversing a bonded set of # NVLinks\n");
    return 0;
}
