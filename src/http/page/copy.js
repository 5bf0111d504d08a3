for (const button of document.querySelectorAll("button[data-copy]")) {
  const text = document.getElementById(button.dataset.copy);
  const label = button.firstElementChild;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let copied = false;
    try {
      await navigator.clipboard.writeText(text.textContent);
      copied = true;
    } catch {
      // Without HTTPS a browser has no clipboard object; what is selected can be copied all the same.
      getSelection().selectAllChildren(text);
      copied = document.execCommand("copy");
    }
    label.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => (label.textContent = "Copy"), 2500);
  });
}
