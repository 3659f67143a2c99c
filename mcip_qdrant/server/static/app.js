// The page: ties the form, the filters and the grid to the server.

import { get, Problem, post, setKey, showPicture } from "./api.js";
import { Facets } from "./facets.js";
import { hitElement } from "./hits.js";
import { bringsPictures, Query, visible } from "./query.js";

const PAGE = 24;
const MOST_VALUES = 100; // of a field, that the server counts

const $ = (id) => document.getElementById(id);
const facets = new Facets($("facets"), searchAndRecount);
const query = new Query();
const searches = new Map(); // entry of the history -> what was searched for
let next = null; // { body, offset } of the next page
let running = null;
let again = null;

function say(text) {
  $("status").textContent = text;
}

function complain(error, retry) {
  again = retry;
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
    // The search that went with it may have failed as well, and its error is no longer to be seen.
    complain(error, searchAndRecount);
  }
}

function searchAndRecount() {
  run({ remember: false });
  recount();
}

// Words and "more like this" are in the address, so that Back works and a search can be passed on. Pictures fit into no address:
// Back finds them in memory, as long as the tab is not loaded anew.
function fromAddress() {
  const earlier = searches.get(history.state?.entry);
  if (earlier) query.restore(earlier);
  else {
    const address = new URLSearchParams(location.search);
    const id = address.get("like");
    const like = id ? (history.state?.like ?? { id, name: id, thumbnail: null }) : null;
    query.restore({ words: address.get("q") ?? "", wordsWeight: 1, pictures: [], like });
  }
  $("words").value = query.words;
  run({ remember: false });
}

function toAddress() {
  const address = new URLSearchParams();
  if (query.like) address.set("like", query.like.id);
  else if (query.words.trim()) address.set("q", query.words.trim());
  const search = address.size ? `?${address}` : "/";
  if (search !== (location.search || "/") || !query.hasPicturesOf(searches.get(history.state?.entry))) {
    // A number that no entry from before a reload has.
    history.pushState({ like: query.like, entry: performance.timeOrigin + performance.now() }, "", search);
  }
  searches.set(history.state?.entry, query.snapshot());
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
    $("results").classList.remove("busy");
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
    say("");
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
  calm();
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
  try {
    query.add(files);
  } catch (error) {
    complain(error);
    return;
  }
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

function partElement({ name: given, file, picture, weighted, remove }) {
  const name = visible(given);
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
  const words = document.createElement("span");
  words.className = "label";
  words.textContent = words.title = name;
  what.append(words);
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
// Following the link would make an entry of the history that knows no search.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("results").focus();
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
  if (!bringsPictures(event.clipboardData)) return;
  event.preventDefault();
  query.words = $("words").value;
  addPictures(event.clipboardData.files);
});
addEventListener("dragover", (event) => {
  if (!bringsPictures(event.dataTransfer)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!bringsPictures(event.dataTransfer)) return;
  event.preventDefault();
  query.words = $("words").value;
  addPictures(event.dataTransfer.files);
});

start();
