/* What is known of this server's GPUs and time, by the hub's last answer or the server's start. */

// A browser's clock this far from the hub's is set wrong; less is the way of the answer.
const SKEW_MS = 60_000;
// Where the hub doesn't answer, it doesn't warn either.
const WARN_MS = 15 * 60_000;

/**
 * Return the lease, moments in milliseconds by the browser's clock.
 *
 * @param hub - whose server this is.
 * @param start - what the server was started with: `gpus`, their number, and `until`, their end.
 * @param answer - the hub's last one; null: none so far.
 *
 * - `count`: how many GPUs; 0: there is nothing to show.
 * - `gpus`: each with `number` and `node` (as on the dashboard; "" where there is one node), `inside`
 *   (as `nvidia-smi` in the server counts), `model`, `use` (percent), `used` and `total` (MiB); null
 *   where it isn't known. Empty where only the count is known.
 * - `until`: when its time ends; null: never, or nobody knows.
 * - `endsSoon`: whether its user is to be warned. `waiting`: how many wait who could use its GPUs.
 * - `extendFrom`: from when its user can extend it; null: never.
 * - `idleSince`, `idleUntil`: since when they do nothing, and when the server is stopped for it;
 *   null: it isn't.
 * - `memory`: what it holds of the memory of a GPU that it shares: `guarded`, whether it is kept to its
 *   part, `used` and `part` (MiB), `next` ("end" or "stop") and when that is done, `at`, and `ended`, the
 *   `process` that was ended last, `at` and what it `held` (MiB); null: it shares none, or nobody knows.
 * - `stop`: the stop that somebody has announced, with `at`, `why` and `rule`; null: none.
 * - `failed`: its GPUs that are out of order, each with `number`, null where it isn't known.
 * - `ended`: how the server was stopped by now, with `at`, `rule` and `why`; null: it wasn't.
 * - `live`: whether the hub answers; only then can something be done. `at`: when it answered last.
 */
export function lease(hub, start, answer) {
  const ours = (each) => each.user === hub.user && each.server === hub.server;
  const server = answer?.servers.find(ours);
  if (server) return fromAnswer(server, answer);
  const ended = answer?.stopped?.find(ours);
  return { ...fromStart(start), ended: ended ? at(ended, byClock(answer)) : null };
}

/** Return what instructors have to say to this server's user: messages with `id` and `text`. */
export function messages(hub, answer) {
  const ours = (each) => each.user === hub.user && each.server === hub.server;
  return answer?.messages?.filter(ours) ?? [];
}

/** Return what makes a moment by the browser's clock of one of an answer's. */
export function byClock(answer) {
  const skew = answer.at - Date.parse(answer.now);
  const added = Math.abs(skew) > SKEW_MS ? skew : 0;
  return (iso) => (iso ? Date.parse(iso) + added : null);
}

function at(facts, moment) {
  return { ...facts, at: moment(facts.at) };
}

const mib = (bytes) => (bytes === null ? null : bytes / 2 ** 20);

function shared(memory, moment) {
  const { guarded, next, ended } = memory;
  return {
    guarded,
    next,
    used: mib(memory.used_bytes),
    part: mib(memory.part_bytes),
    at: moment(memory.at),
    ended: ended && { process: ended.process, held: mib(ended.held_bytes), at: moment(ended.at) },
  };
}

function fromAnswer(server, answer) {
  const moment = byClock(answer);
  const until = moment(server.until);
  const ours = answer.gpus.filter((gpu) => server.gpus.includes(gpu.id ?? gpu.uuid));
  return {
    count: server.gpus.length,
    gpus: ours
      .sort((a, b) => a.index - b.index)
      .map((gpu, inside) => ({
        number: gpu.index,
        node: answer.nodes?.length > 1 ? gpu.node : "",
        inside,
        model: gpu.model,
        part: gpu.part ?? "",
        use: gpu.utilization_percent,
        used: gpu.memory_used_mib,
        total: gpu.memory_total_mib,
      })),
    until,
    endsSoon: server.warned || (!answer.fresh && isSoon(until)),
    waiting: server.waited_for ?? answer.queue.waiting.length,
    // A hub of before lets it be extended at any time.
    extendFrom: server.extend_from === undefined ? 0 : moment(server.extend_from),
    idleSince: moment(server.idle_since),
    idleUntil: moment(server.idle_until),
    memory: server.memory ? shared(server.memory, moment) : null,
    stop: server.stop ? at(server.stop, moment) : null,
    failed: (server.trouble?.gpus ?? [])
      .filter((each) => each.verdict === "quarantine")
      .map((each) => ({ number: each.index })),
    ended: null,
    live: answer.fresh,
    at: answer.at,
  };
}

function isSoon(until) {
  return until !== null && until - Date.now() < WARN_MS;
}

function fromStart(start) {
  // The end may have been moved since; once it is past, it surely was.
  const end = Date.parse(start?.until ?? "");
  const until = end > Date.now() ? end : null;
  return {
    count: start?.gpus ?? 0,
    gpus: [],
    until,
    endsSoon: isSoon(until),
    waiting: 0,
    extendFrom: null,
    idleSince: null,
    idleUntil: null,
    memory: null,
    stop: null,
    failed: [],
    ended: null,
    live: false,
    at: null,
  };
}
