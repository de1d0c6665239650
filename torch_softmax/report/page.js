"use strict";

// null stands for -Infinity, for which JSON has no name
function softmax(logits, temperature) {
  const scaled = logits.map((logit) => (logit === null ? -Infinity : logit / temperature));
  // e to the power of a large logit would overflow
  const largest = scaled.reduce((a, b) => Math.max(a, b));
  const powers = scaled.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function entropy(probabilities) {
  // what has no probability adds nothing, where 0 * log(0) would be NaN
  const terms = probabilities.map((p) => (p > 0 ? -p * Math.log(p) : 0));
  return Math.max(0, terms.reduce((a, b) => a + b));
}

function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share > 0.999) return ">99.9%";
  return (100 * share).toFixed(1) + "%";
}

function showRow(card, logits, temperature) {
  const probabilities = softmax(logits, temperature);
  let rest = 1;
  for (const item of card.querySelectorAll("[data-class]")) {
    const share = probabilities[Number(item.dataset.class)];
    rest -= share;
    showShare(item, share);
  }
  const others = card.querySelector(".others");
  if (others) showShare(others, Math.max(0, rest));
  card.querySelector(".confidence").textContent = percent(Math.max(...probabilities));
  card.querySelector(".entropy").textContent = entropy(probabilities).toFixed(3) + " nats";
}

function showShare(item, share) {
  item.querySelector(".bar").style.width = 100 * share + "%";
  item.querySelector(".share").textContent = percent(share);
}

function start() {
  const rows = JSON.parse(document.getElementById("shown-rows").textContent);
  const slider = document.getElementById("temperature");
  const output = document.getElementById("temperature-now");

  function show(temperature) {
    const text = temperature.toPrecision(3);
    output.textContent = text;
    slider.setAttribute("aria-valuetext", "temperature " + text);
    for (const { row, logits } of rows) {
      showRow(document.getElementById("row-" + row), logits, temperature);
    }
  }

  slider.addEventListener("input", () => show(10 ** Number(slider.value)));
  for (const button of document.querySelectorAll("[data-temperature]")) {
    button.addEventListener("click", () => {
      const temperature = Number(button.dataset.temperature);
      slider.value = Math.log10(temperature);
      // not what the slider's steps make of it
      show(temperature);
    });
  }
  document.getElementById("playground").hidden = false;
  show(10 ** Number(slider.value));
}

if (typeof document !== "undefined") start();
