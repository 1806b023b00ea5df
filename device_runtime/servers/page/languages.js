// The language that is spoken: a choice, where the server's model takes one. It is kept for the next visit.

const list = document.getElementById("language");
const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });

export function nameOf(language) {
  try { return new Intl.DisplayNames(["en"], { type: "language" }).of(language); } catch { return language; /* no code that browsers know */ }
}

/** `usual`: what the server takes where nothing is chosen. */
export function offer(languages, usual) {
  const first = option("", usual ? `${nameOf(usual)} (as this server is set)` : "Found out by the model");
  list.replaceChildren(first, ...languages.map(({ code, name }) => option(code, name)));
  list.value = localStorage.getItem("language") || "";
  if (list.selectedIndex < 0) list.value = "";
  list.parentElement.hidden = !languages.length;
}

export const chosen = () => list.value || undefined;
list.onchange = () => localStorage.setItem("language", list.value);
