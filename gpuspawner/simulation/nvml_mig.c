/* The simulated NVML, of MIG: a GPU's mode, and the instances that it is divided into. */
#include "nvml_call.h"

#define SM_PER_SLICE 14 /* an A100's; enough to look at */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *currentMode,
                                  unsigned int *pendingMode)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(currentMode && pendingMode);
    RETURN_IF_FAILED(answer(gpu->mig, currentMode));
    return answer(mig_pending(gpu), pendingMode);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(count);
    return answer(most_instances(gpu), count);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                 nvmlDevice_t *migDevice)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(migDevice);
    if (gpu->mig != 1)
        return NVML_ERROR_NOT_SUPPORTED;
    if (index >= (unsigned int)most_instances(gpu))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < gpu->instance_count; i++)
        if ((unsigned int)gpu->instances[i].index == index && is_known(&gpu->instances[i]))
            return give_handle(gpu->instances[i].uuid, migDevice);
    return state->gap_is_invalid ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *isMigDevice)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(isMigDevice);
    return answer(instance != NULL, isMigDevice);
}

/* What only an instance has is an invalid argument of a GPU. */
#define NEED_INSTANCE() \
    RETURN_IF_FAILED(instance ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT)

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(id);
    NEED_INSTANCE();
    return answer(instance->gi, id);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(id);
    NEED_INSTANCE();
    return answer(instance->ci, id);
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t migDevice,
                                                          nvmlDevice_t *device_)
{
    nvmlDevice_t device = migDevice;
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED_INSTANCE();
    return give_handle(gpu->uuid, device_);
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    nvmlDeviceAttributes_t found = {0};
    NEED(attributes);
    if (!instance)
        return NVML_ERROR_NOT_SUPPORTED;
    found.multiprocessorCount = (unsigned int)instance->slices * SM_PER_SLICE;
    found.sharedCopyEngineCount = (unsigned int)instance->gi_slices;
    found.gpuInstanceSliceCount = (unsigned int)instance->gi_slices;
    found.computeInstanceSliceCount = (unsigned int)instance->slices;
    found.memorySizeMB = (unsigned long long)instance->memory_mib;
    *attributes = found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    return nvmlDeviceGetAttributes_v2(device, attributes);
}
