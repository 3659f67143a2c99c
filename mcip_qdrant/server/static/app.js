// The page: ties the form, the filters and the grid to the server.

import { get, Problem, post, setKey, showPicture } from "./api.js";
import { Facets } from "./facets.js";
import { hitElement } from "./hits.js";
import { Query } from "./query.js";

const PAGE = 24;
const MAX_FILE_MB = 20;
const MOST_VALUES = 100; // of a field, that the server counts

const $ = (id) => document.getElementById(id);
const facets = new Facets($("facets"), () => {
  run();
  recount();
});
const query = new Query();
let next = null; // { body, offset } of the next page
let running = null;
let again = null;

function say(text) {
  $("status").textContent = text;
}

function complain(error, retry) {
  again = retry;
  say("");
  $("login").hidden = error.status !== 401;
  $("problem").textContent = error instanceof Problem ? error.message : `The page failed: ${error.message}`;
  $("retry").hidden = error.status === 401 || (error.status >= 400 && error.status < 500 && error.status !== 404 && error.status !== 409);
  if (error.status === 401) $("key").focus();
}

function calm() {
  $("problem").textContent = "";
  $("retry").hidden = true;
  $("login").hidden = true;
}

async function start() {
  try {
    const [collection, found] = [await get("/v1/collection"), await post("/v1/facets", {})];
    $("about").textContent = `${collection.images.toLocaleString()} images in ${collection.name}, ${collection.model}`;
    $("filters").hidden = !facets.show(found.facets);
    calm();
    fromAddress();
  } catch (error) {
    complain(error, start);
  }
}

async function recount() {
  try {
    await facets.recount(async (field, filter) => {
      const { facets: found } = await post("/v1/facets", { fields: [field], filter, limit: MOST_VALUES });
      return { ...found[0], complete: found[0].values.length < MOST_VALUES };
    });
  } catch (error) {
    complain(error, recount);
  }
}

// Words and "more like this" are in the address, so that Back works and a search can be passed on.
function fromAddress() {
  const address = new URLSearchParams(location.search);
  query.words = $("words").value = address.get("q") ?? "";
  query.pictures = [];
  const id = address.get("like");
  query.like = id ? (history.state?.like ?? { id, name: id, thumbnail: null }) : null;
  run({ remember: false });
}

function toAddress() {
  const address = new URLSearchParams();
  if (query.like) address.set("like", query.like.id);
  else if (query.words.trim()) address.set("q", query.words.trim());
  const search = address.size ? `?${address}` : "/";
  if (search !== (location.search || "/")) history.pushState({ like: query.like }, "", search);
}

async function run({ remember = true, sameParts = false } = {}) {
  if (!sameParts) showParts(); // a slider that is being moved must stay where it is
  running?.abort();
  next = null;
  $("more").hidden = true;
  $("chosen").textContent = facets.count ? `(${facets.count})` : "";
  calm();
  if (query.empty) {
    $("results").replaceChildren();
    say("");
    if (remember) toAddress();
    return;
  }
  if (remember) toAddress();
  const { signal } = (running = new AbortController());
  $("results").classList.add("busy");
  say("Searching…");
  try {
    const body = { ...(await query.body()), limit: PAGE, filter: facets.filter };
    const answer = await post("/v1/search", body, signal);
    $("results").replaceChildren(...answer.hits.map((hit) => hitElement(hit, moreLike)));
    next = answer.next_offset === null ? null : { body, offset: answer.next_offset };
    tell(answer.hits.length);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("results").replaceChildren();
    complain(error, () => run({ remember: false }));
  }
  $("results").classList.remove("busy");
}

function tell(count) {
  $("more").hidden = next === null;
  const filtered = facets.count ? " within the filters" : "";
  if (count === 0) say(`No images found for ${query.name}${filtered}.`);
  else say(`${count}${next ? " and more" : ""} ${count === 1 ? "image" : "images"} for ${query.name}${filtered}.`);
}

async function more() {
  const { body, offset } = next;
  const { signal } = (running = new AbortController());
  $("more").disabled = true;
  try {
    const answer = await post("/v1/search", { ...body, offset }, signal);
    const items = answer.hits.map((hit) => hitElement(hit, moreLike));
    $("results").append(...items);
    next = answer.next_offset === null ? null : { body, offset: answer.next_offset };
    tell($("results").children.length);
    // Whoever came by keyboard goes on where the new ones begin.
    items[0]?.querySelector("button").focus({ preventScroll: true });
  } catch (error) {
    if (error.name !== "AbortError") complain(error, more);
  } finally {
    $("more").disabled = false;
  }
}

function moreLike(like) {
  query.like = like;
  query.pictures = [];
  query.words = $("words").value = "";
  run();
  scrollTo({ top: 0 });
  $("results").focus({ preventScroll: true });
}

function addPictures(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) {
    complain(new Problem("That is not a picture.", 400));
    return;
  }
  const large = pictures.find((file) => file.size > MAX_FILE_MB * 1e6);
  if (large) {
    complain(new Problem(`${large.name} is larger than ${MAX_FILE_MB} MB.`, 413));
    return;
  }
  query.like = null;
  query.pictures.push(...pictures.map((file) => ({ file, weight: 1 })));
  run();
}

// The chips below the search box: each picture, the words where they are mixed, or the image of "more like this".

function showParts() {
  const parts = [];
  if (query.like) {
    parts.push(partElement({ name: `like ${query.like.name}`, picture: query.like.thumbnail, remove: () => (query.like = null) }));
  }
  if (query.mixed && query.words.trim()) {
    parts.push(partElement({ name: query.words.trim(), weighted: [query, "wordsWeight"], remove: removeWords }));
  }
  for (const picture of query.pictures) {
    const remove = () => (query.pictures = query.pictures.filter((other) => other !== picture));
    parts.push(partElement({ name: picture.file.name, file: picture.file, weighted: query.mixed ? [picture, "weight"] : null, remove }));
  }
  $("parts").replaceChildren(...parts);
  $("parts").hidden = parts.length === 0;
}

function removeWords() {
  query.words = $("words").value = "";
  query.wordsWeight = 1;
}

function partElement({ name, file, picture, weighted, remove }) {
  const item = $("part").content.cloneNode(true).querySelector("li");
  const what = item.querySelector(".what");
  if (file || picture) {
    const image = document.createElement("img");
    image.alt = "";
    if (file) {
      image.src = URL.createObjectURL(file);
      image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
      image.addEventListener("error", () => image.remove());
    } else showPicture(image, picture).catch(() => image.remove());
    what.append(image);
  }
  what.append(name);
  const label = item.querySelector(".weight");
  if (weighted) {
    const [owner, field] = weighted;
    const [range, shown] = [label.querySelector("input"), label.querySelector(".number")];
    label.querySelector("span").textContent = `Weight of ${name}`;
    range.value = owner[field];
    shown.textContent = owner[field].toFixed(1);
    range.addEventListener("input", () => (shown.textContent = Number(range.value).toFixed(1)));
    range.addEventListener("change", () => {
      owner[field] = Number(range.value);
      run({ sameParts: true });
    });
  } else label.remove();
  const button = item.querySelector(".remove");
  button.setAttribute("aria-label", `Remove ${name}`);
  button.addEventListener("click", () => {
    remove();
    run();
    $("words").focus();
  });
  return item;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  query.words = $("words").value;
  if (query.words.trim()) query.like = null;
  run();
});
$("words").addEventListener("search", () => {
  if ($("words").value === "" && query.words) $("form").requestSubmit();
});
$("add").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  query.words = $("words").value;
  addPictures($("file").files);
  $("file").value = "";
});
$("more").addEventListener("click", more);
$("retry").addEventListener("click", () => again?.());
$("clear").addEventListener("click", () => facets.clear());
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  try {
    setKey(key);
  } catch (error) {
    complain(error);
    return;
  }
  start();
});
addEventListener("popstate", fromAddress);
addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  query.words = $("words").value;
  addPictures(event.clipboardData.files);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  query.words = $("words").value;
  addPictures(event.dataTransfer.files);
});

start();
