// Filters by payload fields. Values come from the collection, so they are only ever set as text.

import { visible } from "./query.js";

export class Facets {
  #chosen = new Map(); // field -> Map(JSON of value -> value)
  #counts = new Map(); // field -> Map(JSON of value -> the element with its number)
  #turn = 0;
  #place;
  #onChange;

  constructor(place, onChange) {
    this.#place = place;
    this.#onChange = onChange;
  }

  get count() {
    return [...this.#chosen.values()].reduce((sum, values) => sum + values.size, 0);
  }

  clear() {
    this.#chosen.clear();
    for (const box of this.#place.querySelectorAll("input")) box.checked = false;
    this.#onChange();
  }

  // Qdrant's filter: any of the values of each field.
  get filter() {
    return this.#filterWithout(null);
  }

  #filterWithout(left) {
    const must = [...this.#chosen]
      .filter(([field, values]) => values.size && field !== left)
      .map(([key, values]) => ({ should: [...values.values()].map((value) => ({ key, match: { value } })) }));
    return must.length ? { must } : undefined;
  }

  // Numbers within the choices of the other fields: a field's own choices would set its other values to nothing.
  async recount(ask) {
    const turn = (this.#turn += 1);
    const found = await Promise.all([...this.#counts.keys()].map((field) => ask(field, this.#filterWithout(field))));
    if (turn !== this.#turn) return; // a later choice has asked again
    for (const { field, values, complete } of found) {
      const counts = new Map(values.map(({ value, count }) => [JSON.stringify(value), count]));
      for (const [id, number] of this.#counts.get(field)) {
        // What is not among the most frequent values is none at all, or too few to be listed.
        number.textContent = counts.get(id)?.toLocaleString() ?? (complete ? "0" : "…");
      }
    }
  }

  show(facets) {
    this.#counts.clear();
    const useful = facets.filter(({ values }) => values.length > 1);
    this.#place.replaceChildren(...useful.map((facet) => this.#fieldset(facet)));
    return useful.length > 0;
  }

  #fieldset({ field, values }) {
    const set = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = visible(field);
    set.append(legend, ...values.map((value) => this.#choice(field, value)));
    return set;
  }

  #choice(field, { value, count }) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const name = document.createElement("span");
    const number = document.createElement("span");
    box.type = "checkbox";
    name.textContent = visible(String(value));
    number.className = "count";
    number.textContent = count.toLocaleString();
    label.append(box, name, number);
    const id = JSON.stringify(value);
    if (!this.#counts.has(field)) this.#counts.set(field, new Map());
    this.#counts.get(field).set(id, number);
    box.checked = this.#chosen.get(field)?.has(id) ?? false;
    box.addEventListener("change", () => {
      const values = this.#chosen.get(field) ?? new Map();
      if (box.checked) values.set(id, value);
      else values.delete(id);
      this.#chosen.set(field, values);
      this.#onChange();
    });
    return label;
  }
}
