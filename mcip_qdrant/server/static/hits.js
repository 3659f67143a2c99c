// The grid of hits. File names and payloads are strangers' words: they become text, never markup.

import { showPicture } from "./api.js";
import { visible } from "./query.js";

const template = document.querySelector("#hit");

export const baseName = (key) => key.slice(key.lastIndexOf("/") + 1);

export function hitElement(hit, onLike) {
  const item = template.content.cloneNode(true).querySelector("li");
  const name = visible(baseName(hit.key));
  const button = item.querySelector(".picture");
  const score = hit.score.toFixed(3);
  item.dataset.key = hit.key;
  button.setAttribute("aria-label", `${name}, score ${score}. More like this`);
  button.title = visible(hit.key);
  button.addEventListener("click", () => onLike({ id: hit.id, name, thumbnail: hit.thumbnail }));
  item.querySelector(".name").textContent = name;
  item.querySelector(".name").title = visible(hit.key);
  item.querySelector(".score").textContent = score;
  addPicture(button, hit, name);
  return item;
}

function addPicture(button, hit, name) {
  const instead = button.querySelector(".nothumb");
  const none = () => {
    instead.textContent = name;
    button.querySelector("img")?.remove();
  };
  if (!hit.thumbnail) {
    none();
    return;
  }
  const image = document.createElement("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("error", none);
  button.append(image);
  showPicture(image, hit.thumbnail).catch(none);
}
