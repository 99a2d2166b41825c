"use strict";
(() => {
  const source = document.getElementById("rows");
  if (!source) return;
  const rows = JSON.parse(source.textContent);
  const form = document.getElementById("filter");
  const list = document.getElementById("list");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const PAGE = 10;
  let found = [];

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function passage(lang, text, cut) {
    const made = element("div", "text", text);
    made.lang = lang;
    made.dir = "auto";
    if (cut) {
      const note = element("span", "cut", ` … ${cut.toLocaleString("en")} more characters`);
      note.lang = "en";
      note.dir = "ltr";
      made.append(note);
    }
    return made;
  }

  function card(row) {
    const made = element("article", "example");
    const head = element("p", "meta");
    head.append(element("span", "tag", row.lang), element("span", "tag", row.model), element("span", "", row.title), element("span", "note", row.note));
    made.append(head, passage(row.lang, ...row.instruction));
    const answers = element("div", "answers");
    for (const answer of row.answers) {
      const one = element("section", "answer" + (answer.better ? " better" : ""));
      const name = element("h3", "", answer.name);
      name.append(element("span", "note", answer.note));
      one.append(name, passage(row.lang, ...answer.text));
      answers.append(one);
    }
    made.append(answers);
    return made;
  }

  function extend() {
    const shown = list.children.length;
    list.append(...found.slice(shown, shown + PAGE).map(card));
    more.hidden = list.children.length >= found.length;
    const words = found.length === 1 ? "1 example" : `${found.length.toLocaleString("en")} examples`;
    count.textContent = found.length ? `${words} found, ${list.children.length} shown` : "No examples found";
  }

  function filter() {
    const wanted = new FormData(form);
    const text = wanted.get("text").trim().toLowerCase();
    found = rows.filter((row) =>
      ["run", "kind", "lang", "model"].every((key) => !wanted.get(key) || row[key] === wanted.get(key)) &&
      (!text || [row.id, row.instruction[0], ...row.answers.map((answer) => answer.text[0])]
        .some((own) => own.toLowerCase().includes(text))));
    list.replaceChildren();
    extend();
  }

  for (const select of form.querySelectorAll("select")) {
    const values = [...new Set(rows.map((row) => row[select.name]))];
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.parentElement.hidden = values.length < 2;
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", extend);
  filter();
})();
