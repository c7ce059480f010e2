"""`GET /v1/responses/{id}/input_items`: what a response was the answer to, page by page."""

from __future__ import annotations

from typing import Any

import pytest

URL = "/v1/responses"
CALL = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "noon"}


async def create(http, **fields: Any) -> dict[str, Any]:
    answer = await http.post(URL, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(http, response, **query: Any) -> dict[str, Any]:
    answer = await http.get(f"{URL}/{response['id']}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_text_is_a_message_of_the_users(http):
    found = await listed(http, await create(http, input="Hi", instructions="Be brief."))
    (item,) = found["data"]
    assert item.pop("id").startswith("msg_")
    content = [{"type": "input_text", "text": "Hi"}]
    assert item == {"type": "message", "role": "user", "status": "completed", "content": content}
    assert found["object"] == "list" and found["has_more"] is False
    assert (await listed(http, await create(http, instructions="Say hello.")))["data"] == []


async def test_items_are_listed_as_they_were_sent(http):
    said = {"role": "assistant", "content": "Hm.", "id": "msg_mine"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Now?"}]}
    found = (await listed(http, await create(http, input=[said, thought, CALL, OUTPUT]), order="asc"))["data"]
    assert [item["type"] for item in found] == ["message", "reasoning", "function_call", "function_call_output"]
    assert found[0]["id"] == "msg_mine" and found[0]["content"][0]["type"] == "output_text"
    assert "status" not in found[1] and found[1]["content"] == thought["content"]
    assert found[2] == CALL | {"id": found[2]["id"], "status": "completed"}
    assert found[3] == OUTPUT | {"id": found[3]["id"], "status": "completed"}


async def test_earlier_turns_are_part_of_it_with_what_was_answered(http):
    first = await create(http, input="One")
    second = await create(http, input="Two", previous_response_id=first["id"])
    await http.delete(f"{URL}/{first['id']}")
    found = (await listed(http, second, order="asc"))["data"]
    assert [item["content"][0]["text"] for item in found] == ["One", first["output"][0]["content"][0]["text"], "Two"]
    assert found[1] == first["output"][0]


async def test_pages_follow_one_another_in_either_order(http):
    response = await create(http, input=[{"role": "user", "content": str(i), "id": f"msg_{i}"} for i in range(45)])
    page = await listed(http, response)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_44", "msg_25", True)
    page = await listed(http, response, after="msg_25", limit=100)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_24", "msg_0", False)
    page = await listed(http, response, order="asc", limit=2, after="msg_1")
    assert [item["id"] for item in page["data"]] == ["msg_2", "msg_3"] and page["has_more"]
    page = await listed(http, response, order="asc", after="msg_44")
    assert (page["data"], page["first_id"], page["last_id"], page["has_more"]) == ([], None, None, False)


async def test_an_id_that_was_sent_twice_names_one_item(http):
    items = [{"role": "user", "content": text, "id": "msg_1"} for text in "ab"]
    found = (await listed(http, await create(http, input=items)))["data"]
    assert len({item["id"] for item in found}) == 2


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_9"}, "after"),
        ({"include": "x"}, "include"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_by_name(http, query, param):
    response = await create(http, input="Hi")
    answer = await http.get(f"{URL}/{response['id']}/input_items", params=query)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_only_kept_responses_of_ones_own_are_listed(engine, make_http, tmp_path):
    """D11."""
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants:\n- {name: acme, keys: [acme-key]}\n- {name: other, keys: [other-key]}\n")
    http = make_http(engine, tenants_file=str(file), headers={"x-api-key": "acme-key"})
    response = await create(http, input="Hi")
    path = f"{URL}/{response['id']}/input_items"
    assert (await http.get(path)).status_code == 200
    assert (await http.get(path, headers={"x-api-key": "other-key"})).status_code == 404
    unkept = await create(http, input="Hi", store=False)
    assert (await http.get(f"{URL}/{unkept['id']}/input_items")).status_code == 404
