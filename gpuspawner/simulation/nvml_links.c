/* The simulated NVML, of how GPUs are connected: the PCIe bus and NVLink. */
#include "nvml_call.h"

#define MAX_LINKS 18
#define SWITCH_BUS_ID "00000000:C0:00.0" /* no GPU's */

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2,
                                                 nvmlGpuTopologyLevel_t *pathInfo)
{
    nvmlDevice_t device = device1;
    __attribute__((cleanup(close_state))) struct state *again = NULL;
    struct gpu *other = NULL;
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(pathInfo);
    RETURN_IF_FAILED(enter_gpu(__func__, &again, &other, device2, ABOUT_IDENTITY));
    int level = distance(gpu, &state->gpus[other - again->gpus]);
    if (level == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *pathInfo = (nvmlGpuTopologyLevel_t)level;
    return NVML_SUCCESS;
}

/* Where a link of a GPU goes, NULL if it goes nowhere. */
static const char *target_of(const struct gpu *gpu, unsigned int link)
{
    for (int i = 0; i < gpu->link_count; i++) {
        if (link < (unsigned int)gpu->links[i].count)
            return gpu->links[i].target;
        link -= (unsigned int)gpu->links[i].count;
    }
    return NULL;
}

static nvmlReturn_t check_link(const struct gpu *gpu, unsigned int link)
{
    if (!gpu->link_count)
        return NVML_ERROR_NOT_SUPPORTED;
    return link < MAX_LINKS ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link,
                                      nvmlEnableState_t *isActive)
{
    ENTER_GPU(ABOUT_CONDITION);
    RETURN_IF_FAILED(check_link(gpu, link));
    return answer_switch(target_of(gpu, link) != NULL, isActive);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link,
                                                 nvmlPciInfo_t *pci)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(pci);
    RETURN_IF_FAILED(check_link(gpu, link));
    const char *target = target_of(gpu, link);
    if (!target)
        return NVML_ERROR_NOT_SUPPORTED;
    return answer_pci(text_equal(target, "switch") ? SWITCH_BUS_ID : target, pci);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link,
                                                 nvmlIntNvLinkDeviceType_t *type)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(type);
    RETURN_IF_FAILED(check_link(gpu, link));
    const char *target = target_of(gpu, link);
    if (!target)
        return NVML_ERROR_NOT_SUPPORTED;
    *type = text_equal(target, "switch") ? NVML_NVLINK_DEVICE_TYPE_SWITCH
                                         : NVML_NVLINK_DEVICE_TYPE_GPU;
    return NVML_SUCCESS;
}

/* As in `nvidia-smi topo -m`: 32 processors on each socket, which is a NUMA node of its own. */
#define PROCESSORS_PER_SOCKET 32
#define BITS (8 * (unsigned int)sizeof(unsigned long))

nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize,
                                      unsigned long *cpuSet)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(cpuSet && cpuSetSize);
    if (gpu->socket == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    for (unsigned int i = 0; i < cpuSetSize; i++)
        cpuSet[i] = 0;
    for (unsigned int i = 0; i < PROCESSORS_PER_SOCKET; i++) {
        unsigned int processor = (unsigned int)gpu->socket * PROCESSORS_PER_SOCKET + i;
        if (processor / BITS < cpuSetSize)
            cpuSet[processor / BITS] |= 1UL << (processor % BITS);
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned int *node)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(node);
    return answer(gpu->socket, node);
}
