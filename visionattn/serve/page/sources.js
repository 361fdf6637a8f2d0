// Where pictures come from: files, drag and drop, the clipboard, and the camera.
import { at } from "./state.js";

export function listenForFiles(add, report) {
  const field = at("file");
  for (const id of ["choose", "more"]) at(id).addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    add([...field.files]);
    field.value = "";
  });
  let depth = 0; // dragenter and dragleave also come from children
  const holdsFiles = event => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragenter", event => {
    if (!holdsFiles(event)) return;
    depth++;
    at("drop").hidden = false;
  });
  window.addEventListener("dragleave", event => {
    if (!holdsFiles(event)) return;
    depth = Math.max(0, depth - 1);
    at("drop").hidden = depth === 0;
  });
  window.addEventListener("dragover", event => {
    if (holdsFiles(event)) event.preventDefault();
  });
  window.addEventListener("drop", event => {
    depth = 0;
    at("drop").hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", event => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) add(files);
  });
  if (navigator.mediaDevices?.getUserMedia) listenForCamera(add, report);
}

function listenForCamera(add, report) {
  const dialog = at("shoot"), video = at("video");
  let stream = null;
  const start = async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "environment" } });
    } catch (error) {
      report(`The camera cannot be used: ${error.message}`);
      return;
    }
    video.srcObject = stream;
    dialog.showModal();
    await video.play();
  };
  for (const id of ["camera", "camera2"]) {
    at(id).hidden = false;
    at(id).addEventListener("click", start);
  }
  dialog.addEventListener("close", () => {
    stream?.getTracks().forEach(track => track.stop());
    video.srcObject = null;
  });
  at("stop").addEventListener("click", () => dialog.close());
  at("take").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(blob => {
      dialog.close();
      if (blob) add([new File([blob], "camera.png", { type: "image/png" })]);
    }, "image/png");
  });
}
