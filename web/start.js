// The start page: from a stream's id to its page.

const form = document.getElementById("openForm");
const field = document.getElementById("streamId");
const error = document.getElementById("openError");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const id = field.value.trim().toLowerCase();
  if (/^[a-z0-9_-]{1,64}$/.test(id)) {
    error.textContent = "";
    location.assign(`/stream/${id}`);
  } else {
    error.textContent = "A stream's id has 1 to 64 letters, digits, hyphens or underscores.";
    field.focus();
  }
});
