/*
 * What each function of the simulated NVML begins and ends with: read the state, fail as it says, and
 * answer. Shared by the library's own sources, and no symbol of the library.
 */
#ifndef GPUSPAWNER_NVML_CALL_H
#define GPUSPAWNER_NVML_CALL_H

#include "state.h"

#ifdef GPUSPAWNER_NVML_H
#include GPUSPAWNER_NVML_H /* the tests compile our definitions against NVIDIA's own prototypes */
#else
#include "nvml_abi.h"
#endif

#define HIDDEN __attribute__((visibility("hidden")))
#define MIB (1024ULL * 1024ULL)

/* Identity is answered from what the driver remembers, also by a GPU that needs a reset. */
enum question { ABOUT_IDENTITY, ABOUT_CONDITION };

HIDDEN void close_state(struct state **state);
HIDDEN nvmlReturn_t enter(const char *function, struct state **state);
HIDDEN nvmlReturn_t enter_gpu(const char *function, struct state **state, struct gpu **gpu,
                              nvmlDevice_t device, enum question question);
/* The same for a handle of a GPU or of a MIG instance, which is NULL for a GPU. */
HIDDEN nvmlReturn_t enter_device(const char *function, struct state **state, struct gpu **gpu,
                                 struct instance **instance, nvmlDevice_t device,
                                 enum question question);
HIDDEN nvmlReturn_t give_handle(const char *uuid, nvmlDevice_t *device);
/* Whether an instance was there when this session began: it doesn't see those made since. */
HIDDEN int is_known(const struct instance *instance);
/* "No permission" from a GPU in MIG mode, of what tells the use of all its instances. */
HIDDEN nvmlReturn_t check_privileges(const struct state *state, const struct gpu *gpu,
                                     const struct instance *instance);
/* "Not supported" from a GPU that has instances, of what only each of them could tell. */
HIDDEN nvmlReturn_t check_undivided(const struct gpu *gpu);

/* The value, or "not supported" where it is ABSENT or NULL. */
HIDDEN nvmlReturn_t answer(int value, unsigned int *result);
HIDDEN nvmlReturn_t answer_text(const char *text, char *result, unsigned int length);
HIDDEN nvmlReturn_t answer_switch(int on, nvmlEnableState_t *result);
HIDDEN nvmlReturn_t answer_pci(const char *bus_id, nvmlPciInfo_t *pci);

#define RETURN_IF_FAILED(expression) \
    do { \
        nvmlReturn_t code_ = (expression); \
        if (code_ != NVML_SUCCESS) \
            return code_; \
    } while (0)

#define ENTER() \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    RETURN_IF_FAILED(enter(__func__, &state))

#define ENTER_GPU(question) \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    struct gpu *gpu = NULL; \
    RETURN_IF_FAILED(enter_gpu(__func__, &state, &gpu, device, question))

#define ENTER_DEVICE(question) \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    struct gpu *gpu = NULL; \
    struct instance *instance = NULL; \
    RETURN_IF_FAILED(enter_device(__func__, &state, &gpu, &instance, device, question))

/* What drivers before this branch don't have, as a library without the symbol says it. */
#define NEED_DRIVER(branch) \
    RETURN_IF_FAILED(number(state->driver) < (branch) ? NVML_ERROR_FUNCTION_NOT_FOUND : NVML_SUCCESS)

#define NEED(pointer) RETURN_IF_FAILED((pointer) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT)

#endif
