"use strict";
// Asks whether the page is there, says how far it is, and opens it.

const place = document.getElementById("progress");

async function look() {
  try {
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
    if (answer.status !== 202) {
      location.reload();
      return;
    }
    const said = answer.headers.get("X-Progress");
    if (said && said !== place.textContent) place.textContent = said;
  } catch {
    place.textContent = "The server does not answer. Is vdna serve still running?";
  }
  setTimeout(look, 2000);
}

setTimeout(look, 1000);
