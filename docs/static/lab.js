"use strict";

// A box that scrolls can be reached with the keyboard.
function reach() {
  for (const box of document.querySelectorAll("article pre, article p, .scroll, .table-wrapper, div.output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}

addEventListener("DOMContentLoaded", reach);
addEventListener("resize", reach);
