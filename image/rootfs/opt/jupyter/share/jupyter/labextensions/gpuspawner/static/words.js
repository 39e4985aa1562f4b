/* What is said, in the reader's language. */

/** Why a server can't be extended now. */
export const WAITED_FOR = "Others wait for its GPUs ({count}), so it can't be extended.";

/** What becomes of a server whose container has lost its GPUs' devices. */
export const GPUS_GONE =
  "This server has lost its GPUs: programs that start now don't find them. Save your work, and restart it.";

// The rule of a stop by an instructor of the server's course.
const INSTRUCTOR = "an instructor";

// By the English words. A number or a name stands where {…} is.
const CHINESE = {
  "{count} × {model}": "{count} × {model}",
  "{count} GPU": "{count} 个 GPU",
  "{count} GPUs": "{count} 个 GPU",
  "{time} left": "剩余 {time}",
  "less than 1 min": "不到 1 分钟",
  "{minutes} min": "{minutes} 分钟",
  "{hours} h": "{hours} 小时",
  "{hours} h {minutes} min": "{hours} 小时 {minutes} 分钟",
  "{days} d {hours} h": "{days} 天 {hours} 小时",
  "GPUs of this server": "此服务器的 GPU",
  "GPU {number}": "GPU {number}",
  "GPU {number} ({part})": "GPU {number}（{part}）",
  use: "利用率",
  memory: "显存",
  "{used} of {total} GB": "{used} / {total} GB",
  unknown: "未知",
  "Your time doesn't end.": "此服务器没有使用时限。",
  "Your time ends at {moment}.": "使用时间到 {moment} 为止。",
  "All GPUs of this machine": "本机全部 GPU",
  "JupyterHub doesn't answer. What is shown is from {moment}.":
    "JupyterHub 没有响应，以下是 {moment} 的信息。",
  "What the GPUs do can't be shown here.": "这里无法显示 GPU 的使用情况。",
  Extend: "延长时间",
  "I'm still here": "我还在用",
  "This server is stopped at {moment}, when its time ends. Save your work, or extend it.":
    "此服务器的使用时间到 {moment} 结束，届时会被停止。请保存工作，或者延长时间。",
  "This server is stopped at {moment}, when its time ends. Save your work.":
    "此服务器的使用时间到 {moment} 结束，届时会被停止。请保存工作。",
  [GPUS_GONE]: "此服务器已失去 GPU，新启动的程序找不到它们。请保存工作并重启服务器。",
  "A GPU of this server is out of order. Save your work, and restart it: it gets another one.":
    "此服务器的一个 GPU 出现故障。请保存工作并重启服务器，以换用其他 GPU。",
  "GPU {number} of this server is out of order. Save your work, and restart it: it gets another one.":
    "此服务器的 GPU {number} 出现故障。请保存工作并重启服务器，以换用其他 GPU。",
  [WAITED_FOR]: "有 {count} 人在等它的 GPU，现在不能延长。",
  "It can be extended from {moment} on.": "从 {moment} 起可以延长时间。",
  "This server now ends at {moment}.": "此服务器的使用时间已延长到 {moment}。",
  "The GPUs of this server have done nothing since {since}. At {moment} it is stopped.":
    "此服务器的 GPU 从 {since} 起一直空闲。到 {moment} 服务器会被停止，以便他人使用。",
  "This server holds {used} GB of a shared GPU, its part is {part} GB. At {moment} its largest process is ended.":
    "此服务器占用了共享 GPU 的 {used} GB 显存，而它的份额是 {part} GB。到 {moment} 占用最多的进程会被结束。",
  "This server holds {used} GB of a shared GPU, its part is {part} GB. At {moment} it is stopped: save your work.":
    "此服务器占用了共享 GPU 的 {used} GB 显存，而它的份额是 {part} GB。到 {moment} 服务器会被停止，请保存工作。",
  "{process} was ended at {moment}: it held {held} GB of a shared GPU, and this server's part is {part} GB.":
    "进程 {process} 已在 {moment} 被结束：它占用了共享 GPU 的 {held} GB 显存，而此服务器的份额是 {part} GB。",
  "This server was stopped at {moment}: it held too much of a shared GPU's memory.":
    "此服务器已在 {moment} 停止：它占用的共享 GPU 显存超出份额。",
  "This server holds {used} of its {part} GB of the shared GPU's memory.":
    "此服务器占用了共享 GPU 的 {used} GB 显存，份额为 {part} GB。",
  "Nothing limits what a server takes of the shared GPU's memory.":
    "共享 GPU 的显存没有任何限制，请只用自己的份额。",
  "no GPU": "没有 GPU",
  "get one": "获取 GPU",
  "A GPU for this server": "为此服务器申请 GPU",
  "How many?": "需要几个？",
  "Which kind?": "哪一种？",
  GPU: "整个 GPU",
  "shared GPU": "共享 GPU",
  "{kind} instance": "{kind} 实例",
  "Get a GPU": "申请 GPU",
  "Switch now": "现在切换",
  "Not now": "暂不切换",
  "Leave the queue": "退出排队",
  OK: "知道了",
  "Home page": "主页",
  "All your servers": "您的全部服务器",
  "place {place} of {of}": "排在第 {place} 位，共 {of} 人",
  "GPU reserved until {moment}": "GPU 为您保留到 {moment}",
  "The server goes on while it waits. At its turn it saves, and starts again with the GPUs and the same files.":
    "等待期间服务器照常运行。轮到时先保存，再带着 GPU 重新启动，文件不变。",
  "It goes on while it waits for GPUs: place {place} of {of}.":
    "服务器照常运行，正在排队等待 GPU：第 {place} 位，共 {of} 人。",
  "It goes on while it waits for GPUs.": "服务器照常运行，正在等待 GPU。",
  "Its turn is expected about {moment}.": "预计 {moment} 左右轮到。",
  "A GPU is reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.":
    "已为您保留 1 个 GPU，到 {moment} 为止。切换时服务器先保存再重启，其中的程序会结束。",
  "A part of a GPU ({what}) is reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.":
    "已为您保留 GPU 的一部分（{what}），到 {moment} 为止。切换时服务器先保存再重启，其中的程序会结束。",
  "{gpus} GPUs are reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.":
    "已为您保留 {gpus} 个 GPU，到 {moment} 为止。切换时服务器先保存再重启，其中的程序会结束。",
  "The server saves and restarts. This page comes back with it.":
    "服务器正在保存并重启，启动后本页会重新打开。",
  "The server hasn't come back yet: the home page says why.": "服务器还没有启动，原因见主页。",
  "The server isn't running: the home page says why.": "服务器没有运行，原因见主页。",
  "Give the GPUs back…": "归还 GPU…",
  "Give them back": "归还",
  "The server saves, and starts again without GPUs. Programs in it end, your files are kept.":
    "服务器先保存，再以不带 GPU 的方式重新启动。其中的程序会结束，文件会保留。",
  stopped: "已停止",
  "Save your work: an administrator stops this server at {moment}.":
    "请保存工作：管理员将在 {moment} 停止此服务器。",
  "Save your work: an administrator stops this server at {moment}: {why}":
    "请保存工作：管理员将在 {moment} 停止此服务器：{why}",
  "An administrator stopped this server at {moment}.": "管理员已在 {moment} 停止此服务器。",
  "An administrator stopped this server at {moment}: {why}":
    "管理员已在 {moment} 停止此服务器：{why}",
  "Save your work: an instructor stops this server at {moment}.":
    "请保存工作：课程教师将在 {moment} 停止此服务器。",
  "Save your work: an instructor stops this server at {moment}: {why}":
    "请保存工作：课程教师将在 {moment} 停止此服务器：{why}",
  "An instructor stopped this server at {moment}.": "课程教师已在 {moment} 停止此服务器。",
  "An instructor stopped this server at {moment}: {why}":
    "课程教师已在 {moment} 停止此服务器：{why}",
  "From your instructors: {text}": "课程教师：{text}",
  "This server was stopped at {moment}: its time was over.":
    "此服务器已在 {moment} 停止：使用时间已到。",
  "This server was stopped at {moment}: its GPUs did nothing.":
    "此服务器已在 {moment} 停止：它的 GPU 一直空闲。",
  "The GPUs stay yours.": "好的，GPU 继续为您保留。",
  "JupyterHub doesn't answer. Please try again.": "JupyterHub 没有响应，请再试一次。",
  "The kernel of {name} was killed": "{name} 的内核被终止",
  "A process ({name}) was killed": "一个进程（{name}）被终止",
  "A process was killed": "一个进程被终止",
  "{what}: the machine's memory was full.": "{what}：本机内存已用尽。",
  "{what}: the server's memory was full ({peak} of {limit} GB).":
    "{what}：服务器内存已用尽（{peak} / {limit} GB）。",
  "{what}: the server's memory was full ({limit} GB).": "{what}：服务器内存已用尽（{limit} GB）。",
  "What programs in this server use; at the limit one of them is killed":
    "此服务器中程序占用的内存；达到上限时，其中一个会被终止",
  "Memory {used} GB": "内存 {used} GB",
  "Memory {used} of {total} GB": "内存 {used} / {total} GB",
  "Memory {used} of {total} GB, nearly full": "内存 {used} / {total} GB，即将用尽",
  "Running kernels": "正在运行的内核",
  "The GPU's memory was full. Use smaller batches, or shut down other kernels that are on it.":
    "GPU 显存已用尽。请减小批量，或关闭占用它的其他内核。",
  "The GPU's {total} GB are full, and {names} is on it too. Shut that down, or use smaller batches.":
    "GPU 的 {total} GB 显存已用尽，{names} 也在使用它。请关闭后者，或减小批量。",
  "The GPU's {total} GB are full: {own} GB here, {rest} GB {names}. Shut that down, or use smaller batches.":
    "GPU 的 {total} GB 显存已用尽：此内核 {own} GB，{names} {rest} GB。请关闭后者，或减小批量。",
  "The GPU's memory doesn't suffice: {asked} GB more were asked for, {free} of {total} GB are free. Use smaller batches.":
    "GPU 显存不够：还要申请 {asked} GB，而 {total} GB 中只剩 {free} GB。请减小批量。",
  "The GPU's {total} GB are full. Use smaller batches, or restart the kernel.":
    "GPU 的 {total} GB 显存已用尽。请减小批量，或重启内核。",
  "The GPU's {total} GB are full, {own} GB by this kernel alone. Use smaller batches, or restart it.":
    "GPU 的 {total} GB 显存已用尽，仅此内核就占 {own} GB。请减小批量，或重启内核。",
  "Your files take {used} GB.": "您的文件占用 {used} GB。",
  "Your files take {used} of {total} GB.": "您的文件占用 {used} GB，上限 {total} GB。",
  "{much} Remove what you no longer need.": "{much}请删除不再需要的文件。",
  "How?": "怎么做？",
  "When no room is left, nothing can be saved any more.": "空间用尽后将无法保存任何内容。",
  "In a terminal, this shows what is large:": "在终端中查看哪些文件较大：",
  "What you delete in the file browser is in the Trash, and counts until you empty it:":
    "在文件浏览器中删除的文件会进入回收站，清空之前仍计入：",
  "Kept when this server stops: {folders}. Gone then: everything else, such as /tmp and what apt installs.":
    "此服务器停止后会保留：{folders}。其余都会消失，例如 /tmp 和用 apt 安装的软件。",
  "Kept when this server stops: {folders}. Gone then: everything else, also the rest of your home and what pip installs.":
    "此服务器停止后会保留：{folders}。其余都会消失，包括主目录的其他部分和用 pip 安装的软件包。",
  "Your files are on the machine of this server: with a server on another machine you don't see them.":
    "您的文件在此服务器所在的机器上：服务器在另一台机器上启动时看不到它们。",
  "Nothing is kept when this server stops. Download what you need before.":
    "此服务器停止后不保留任何文件，请提前下载需要的内容。",
  "your home (~)": "主目录（~）",
  ", ": "、",
  TensorBoard: "TensorBoard",
  "Training curves of the folder that is open, or of its folder runs":
    "当前文件夹（或其中 runs 文件夹）的训练曲线",
  "TensorBoard is starting…": "TensorBoard 正在启动…",
  "TensorBoard doesn't start: {why}": "TensorBoard 无法启动：{why}",
  "Your packages are in {versions}. This server runs {version}, without them.":
    "您的软件包装在 {versions} 中；此服务器运行的是 {version}，用不到它们。",
};

const MINUTE_MS = 60_000;

export class Words {
  /** @param translator - JupyterLab's; null where there is none. */
  constructor(translator) {
    const chosen = (translator?.languageCode ?? "").replace("_", "-");
    // JupyterLab is in English where nobody chose a language: then the browser's is the reader's.
    const language = /^(default|en)?(-|$)/i.test(chosen) ? navigator.language : chosen;
    this._chinese = /^zh\b/i.test(language);
    this._bundle = translator?.load("gpuspawner");
    this._locale = this._chinese ? "zh-CN" : language || undefined;
  }

  /** Return a sentence of the catalogue above, with its values. */
  say(english, values = {}) {
    const sentence = this._chinese
      ? CHINESE[english] ?? english
      : this._bundle?.__(english) ?? english;
    return sentence.replace(/\{(\w+)\}/g, (as_it_is, name) => values[name] ?? as_it_is);
  }

  /** Return a moment as a clock shows it, with its day where that isn't today. */
  moment(at) {
    const [then, now] = [new Date(at), new Date()];
    const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (then.toDateString() !== now.toDateString()) {
      Object.assign(shape, { weekday: "short", month: "short", day: "numeric" });
    }
    if (then.getFullYear() !== now.getFullYear()) shape.year = "numeric";
    return then.toLocaleString(this._locale, shape);
  }

  /** Return how long it is until then. */
  left(until) {
    // A minute that has begun is still there for its user.
    const all = Math.max(0, Math.floor((until - Date.now()) / MINUTE_MS));
    const [days, hours, minutes] = [Math.floor(all / 1440), Math.floor(all / 60), all % 60];
    if (all < 1) return this.say("less than 1 min");
    if (hours < 1) return this.say("{minutes} min", { minutes });
    if (days > 1) return this.say("{days} d {hours} h", { days, hours: hours % 24 });
    return minutes
      ? this.say("{hours} h {minutes} min", { hours, minutes })
      : this.say("{hours} h", { hours });
  }

  /** Return a GPU's name, as on the hub's pages: with the part of it that there is, "GPU 1 (1/8)". */
  name({ node, number, part }) {
    const gpu = part
      ? this.say("GPU {number} ({part})", { number, part })
      : this.say("GPU {number}", { number });
    return node ? `${node} · ${gpu}` : gpu;
  }

  /** Return what a kind of GPUs is called: "shared GPU", "1g.10gb instance". */
  kind(kind) {
    if (kind === "gpu") return this.say("GPU");
    return kind === "shared" ? this.say("shared GPU") : this.say("{kind} instance", { kind });
  }

  /** Return that somebody stops the server, when and why. */
  stops({ at, why, rule }) {
    const moment = this.moment(at);
    if (rule === INSTRUCTOR) {
      return why
        ? this.say("Save your work: an instructor stops this server at {moment}: {why}", {
            moment,
            why,
          })
        : this.say("Save your work: an instructor stops this server at {moment}.", { moment });
    }
    return why
      ? this.say("Save your work: an administrator stops this server at {moment}: {why}", {
          moment,
          why,
        })
      : this.say("Save your work: an administrator stops this server at {moment}.", { moment });
  }

  /** Return how the server was stopped. */
  ended({ at, rule, why }) {
    const moment = this.moment(at);
    if (rule === "time limit") {
      return this.say("This server was stopped at {moment}: its time was over.", { moment });
    }
    if (rule === "idle GPUs") {
      return this.say("This server was stopped at {moment}: its GPUs did nothing.", { moment });
    }
    if (rule === "GPU memory") {
      return this.say(
        "This server was stopped at {moment}: it held too much of a shared GPU's memory.",
        { moment }
      );
    }
    if (rule === INSTRUCTOR) {
      return why
        ? this.say("An instructor stopped this server at {moment}: {why}", { moment, why })
        : this.say("An instructor stopped this server at {moment}.", { moment });
    }
    return why
      ? this.say("An administrator stopped this server at {moment}: {why}", { moment, why })
      : this.say("An administrator stopped this server at {moment}.", { moment });
  }

  /** Return how many of what GPUs there are. */
  gpus(facts) {
    const models = new Set(facts.gpus.map((gpu) => short(gpu.model)));
    const [model] = models;
    const { count } = facts;
    const [gpu] = facts.gpus;
    // A part of a GPU is one, and what model it is of is in the panel.
    if (count === 1 && gpu?.part) return this.name(gpu);
    if (models.size === 1 && model) return this.say("{count} × {model}", { count, model });
    return this.say(count === 1 ? "{count} GPU" : "{count} GPUs", { count });
  }
}

/** Return what people call a model: "NVIDIA A100-SXM4-40GB" is "A100". */
export function short(model) {
  return (model ?? "")
    .replace(/\b(NVIDIA|Tesla|Quadro|GeForce)\s+/g, "")
    .replace(/(-(SXM|PCI|NVL)|[\s-]\d+\s?GB|\s(PCI|SXM|NVL|Generation|Server|Workstation)).*$/i, "");
}

/** Return an amount of memory as people say it; `mib` in MiB. */
export function gigabytes(mib) {
  return mib > 0 && mib < 10 * 1024 ? (mib / 1024).toFixed(1) : (mib / 1024).toFixed(0);
}
