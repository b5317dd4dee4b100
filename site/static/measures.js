// Sorts the table of measures by the column whose head is pressed; pressed again, the other way round.
{
  const table = document.querySelector(".measures table");
  const status = document.querySelector(".sorted");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => Number(row.cells[column].dataset.value.replace("inf", "Infinity"));

  const sort = (column) => {
    const rising = heads[column].getAttribute("aria-sort") !== "ascending";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return x === y ? value(a, 0) - value(b, 0) : x < y === rising ? -1 : 1;
    });
    body.append(...rows);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
    status.textContent = `Sorted by ${heads[column].dataset.name}, ${rising ? "lowest" : "highest"} first.`;
  };

  heads.forEach((head, column) => {
    head.dataset.name = head.firstChild.textContent;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  sort(0);
}
