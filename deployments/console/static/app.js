// What htmx does not do by itself: theme, local times, live rows, selections that survive a reload. No dependency on
// anything but htmx; nothing is made from strings of markup here.
(() => {
  const root = document.documentElement;
  const theme = localStorage.getItem("theme");
  if (theme) root.dataset.theme = theme;

  const selected = new Set();
  let source = null, again = null, loaded = 0, ticked = false;

  const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  function localTimes(within) {
    for (const e of within.querySelectorAll("time[datetime]:not([data-done])")) {
      const at = new Date(e.dateTime);
      if (isNaN(at)) continue;
      e.title = e.textContent.trim();
      e.textContent = when.format(at);
      e.dataset.done = "";
    }
  }

  function size(n) {
    let unit = 0;
    const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    while (Math.abs(n) >= 1000 && unit < units.length - 1) { n /= 1000; unit++; }
    return `${n.toFixed(unit ? 1 : 0)} ${units[unit]}`;
  }
  function duration(s) {
    if (s < 60) return `${Math.round(s)} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s`;
    return `${Math.floor(s / 3600)} h ${String(Math.floor(s % 3600 / 60)).padStart(2, "0")} min`;
  }

  // -- live rows ------------------------------------------------------------------------------------------------------

  function update(row) {
    const tr = document.getElementById(`t${row.id}`);
    if (!tr) return false;
    const changed = tr.dataset.state !== row.state;
    const bar = tr.querySelector("progress");
    if (bar && row.size > 0 && row.phase === "deliver" && row.bytes_done > 0 && row.bytes_done < row.size) {
      bar.max = row.size;
      bar.value = row.bytes_done;
    }
    const told = tr.querySelector(".speed");
    if (told) {
      const parts = [];
      if (row.wish) parts.push(`${row.wish} asked`);
      if (row.bytes_done && row.phase) parts.push(`${size(row.bytes_done)} of ${size(row.size)}`);
      if (row.bytes_per_s) parts.push(`${size(row.bytes_per_s)}/s`);
      if (row.seconds_left !== null) parts.push(`${duration(row.seconds_left)} left`);
      told.textContent = parts.join(", ");
    }
    return !changed;
  }

  function rows(event) {
    const told = JSON.parse(event.data);
    const count = document.getElementById("moving");
    if (count) count.textContent = told.moving.toLocaleString();
    let all = true;
    for (const row of told.rows) all = update(row) && all;
    if (!all) later(Math.max(500, 5000 - (Date.now() - loaded)));  // many small files: a page every 5 s, not each second
  }

  function later(ms) {
    again ??= setTimeout(() => { again = null; reload(); }, ms);
  }

  function reload(forced) {
    const live = document.getElementById("live");
    if (forced === true) {
      for (const d of live?.querySelectorAll("details[open]") ?? []) d.open = false;
      if (live?.contains(document.activeElement)) document.activeElement.blur();
    }
    if (!live || document.hidden || live.contains(document.activeElement) && document.activeElement.matches("input:not([type=checkbox]), select, textarea")) return;
    if (live.querySelector("details[open]")) return;
    // what was typed is not taken away
    if (!forced && [...live.querySelectorAll("input:not([type=checkbox]):not([type=hidden]), textarea")].some((i) => i.value !== i.defaultValue)) return;
    loaded = Date.now();
    htmx.ajax("GET", live.dataset.url || location.pathname + location.search, { target: "#live", select: "#live", swap: "outerHTML" });
  }

  function listen() {
    const live = document.getElementById("live");
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (live?.dataset.stream !== undefined && !source) {
      source = new EventSource("/api/v1/stream");
      source.addEventListener("rows", rows);
      source.onerror = () => {  // an answer that is no stream: browsers try that never again
        if (source?.readyState === EventSource.CLOSED) { source = null; setTimeout(listen, 5000); }
      };
    }
  }

  setInterval(() => {
    const live = document.getElementById("live");
    if (live?.dataset.every) {
      live.dataset.waited = Number(live.dataset.waited || 0) + 1;
      if (Number(live.dataset.waited) >= Number(live.dataset.every)) { live.dataset.waited = 0; reload(); }
    }
  }, 1000);

  // -- selections -----------------------------------------------------------------------------------------------------

  function restore() {
    for (const box of document.querySelectorAll("input[name=id]")) box.checked = selected.has(box.value);
    count();
  }
  function count() {
    const told = document.getElementById("selected");
    if (told) told.textContent = selected.size ? `${selected.size.toLocaleString()} selected` : "";
    const here = [...document.querySelectorAll("input[name=id]")];
    const every = document.getElementById("every");
    if (every) every.checked = here.length > 0 && here.every((b) => b.checked);
    for (const b of document.querySelectorAll("[data-bulk]")) b.disabled = !selected.size;
    const none = document.getElementById("unselect");
    if (none) none.hidden = !selected.size;
  }

  document.addEventListener("change", (e) => {
    if (e.target.id === "every") {
      for (const box of document.querySelectorAll("input[name=id]")) {
        box.checked = e.target.checked;
        box.checked ? selected.add(box.value) : selected.delete(box.value);
      }
      count();
    } else if (e.target.name === "id") {
      e.target.checked ? selected.add(e.target.value) : selected.delete(e.target.value);
      count();
    }
  });

  // -- player ---------------------------------------------------------------------------------------------------------

  let hls = null;

  function play(link) {
    const dialog = document.getElementById("player"), video = dialog.querySelector("video");
    const failed = () => {
      dialog.querySelector("[role=alert]").hidden = false;
      dialog.querySelector("[role=alert] a").href = link.href;
    };
    dialog.querySelector("[role=alert]").hidden = true;
    document.getElementById("player-name").textContent = link.dataset.name;
    video.onerror = () => { if (video.getAttribute("src")) failed(); };
    dialog.showModal();
    const begin = () => video.play().catch(() => {}); // where a browser does not begin by itself, there is a button
    if (link.dataset.play !== "hls" || video.canPlayType("application/vnd.apple.mpegurl")) {
      video.src = link.href;
      begin();
      return;
    }
    script("/static/hls.light.min.js").then(() => {
      if (!dialog.open) return;
      if (!Hls.isSupported()) { failed(); return; }
      hls = new Hls({ enableWorker: false });  // the policy lets no worker be made from text
      hls.on(Hls.Events.ERROR, (_, told) => { if (told.fatal) failed(); });
      hls.on(Hls.Events.MANIFEST_PARSED, begin);
      hls.loadSource(link.href);
      hls.attachMedia(video);
    }, failed);
  }

  function stop() {
    const video = document.querySelector("#player video");
    hls?.destroy();
    hls = null;
    video.pause();
    video.removeAttribute("src");
    video.load();
  }

  function script(src) {
    return window.Hls ? Promise.resolve() : new Promise((done, failed) => {
      const e = document.createElement("script");
      e.src = src; e.onload = done; e.onerror = failed;
      document.head.append(e);
    });
  }

  document.addEventListener("click", (e) => {
    const link = e.target.closest("[data-play]");
    if (link && !e.ctrlKey && !e.metaKey && !e.shiftKey) {
      e.preventDefault();
      play(link);
      return;
    }
    if (e.target.closest("[data-close]") || e.target.id === "player") document.getElementById("player").close();
    if (e.target.closest("#unselect")) {
      selected.clear();
      restore();
    } else if (e.target.closest("[data-no]")) {
      document.getElementById("told").replaceChildren();
    } else if (e.target.closest("#theme")) {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
    } else if (e.target.closest("#menu")) {
      const open = document.querySelector("nav").classList.toggle("open");
      document.getElementById("menu").setAttribute("aria-expanded", String(open));
    }
  });

  // a picture that is being made is 16 by 9
  document.addEventListener("load", (e) => {
    const i = e.target, asked = Number(i.dataset?.asked || 0);
    if (i.tagName !== "IMG" || i.naturalWidth !== 16 || i.naturalHeight !== 9 || asked >= 60) return;
    i.dataset.asked = asked + 1;
    setTimeout(() => { i.src = `${i.src.split("?")[0]}?${asked + 1}`; }, 1500);
  }, true);

  document.addEventListener("DOMContentLoaded", () => {
    localTimes(document);
    restore();
    listen();
    document.getElementById("player")?.addEventListener("close", stop);
    document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) later(0); });
    // what is ticked is meant, wherever it is now: rows leave the page while it is looked at
    document.body.addEventListener("htmx:configRequest", (e) => {
      if (e.detail.verb !== "post") return;
      const form = e.detail.elt.matches("#ticked"); // its property `id` is its fields of that name
      ticked = form && e.detail.triggeringEvent?.submitter?.dataset.bulk !== undefined;
      if (!form) return;
      e.detail.formData.delete("id");
      if (ticked) for (const id of selected) e.detail.formData.append("id", id);
    });
    document.body.addEventListener("changed", () => { if (ticked) selected.clear(); setTimeout(() => reload(true), 50); });
    document.body.addEventListener("htmx:afterSettle", () => { localTimes(document); restore(); listen(); });
    document.body.addEventListener("htmx:beforeSwap", (e) => {
      // what was refused is shown like what was done
      if (e.detail.xhr.status >= 400 && e.detail.xhr.getResponseHeader("content-type")?.startsWith("text/html")) {
        e.detail.shouldSwap = true;
        e.detail.isError = false;
      }
    });
    const say = (text) => { const told = document.getElementById("told"); if (told) told.textContent = text; };
    document.body.addEventListener("htmx:sendError", () => say("The console does not answer."));
    document.body.addEventListener("htmx:responseError", (e) => {
      let text = `The console says ${e.detail.xhr.status}.`;
      try { text = JSON.parse(e.detail.xhr.responseText).detail || text; } catch { /* it is no JSON: its number is all there is */ }
      say(text);
    });
  });
})();
