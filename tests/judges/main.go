// Command judges says what GitOps tools make of objects. It reads a JSON array of objects with an Argo CD health script
// each, and writes an array of verdicts: kstatus, which Flux uses, by its own library; and Argo CD's, by the Lua engine
// that Argo CD uses, with the same libraries open.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type question struct {
	Object map[string]any `json:"object"`
	Script string         `json:"script"`
}

type verdict struct {
	Kstatus string `json:"kstatus"`
	Argo    health `json:"argo"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	var questions []question
	decoder := json.NewDecoder(os.Stdin)
	if err := decoder.Decode(&questions); err != nil {
		log.Fatalf("questions: %v", err)
	}
	verdicts := make([]verdict, 0, len(questions))
	for _, question := range questions {
		verdicts = append(verdicts, verdict{Kstatus: kstatus(question.Object), Argo: argo(question)})
	}
	if err := json.NewEncoder(os.Stdout).Encode(verdicts); err != nil {
		log.Fatal(err)
	}
}

func kstatus(object map[string]any) string {
	result, err := status.Compute(&unstructured.Unstructured{Object: integers(object).(map[string]any)})
	if err != nil {
		return "error: " + err.Error()
	}
	return string(result.Status)
}

// The numbers of an unstructured object are integers where they can be; those of encoding/json are not.
func integers(value any) any {
	switch value := value.(type) {
	case float64:
		return int64(value)
	case map[string]any:
		for key, child := range value {
			value[key] = integers(child)
		}
	case []any:
		for index, child := range value {
			value[index] = integers(child)
		}
	}
	return value
}

func argo(question question) health {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	open := map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage,
		lua.BaseLibName: lua.OpenBase,
		lua.TabLibName:  lua.OpenTable,
	}
	for _, name := range []string{lua.LoadLibName, lua.BaseLibName, lua.TabLibName} {
		call := lua.P{Fn: state.NewFunction(open[name]), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			log.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", luaValue(state, question.Object))
	if err := state.DoString(question.Script); err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	text, err := luajson.Encode(state.Get(-1))
	if err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	var answer health
	if err := json.Unmarshal(text, &answer); err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	return answer
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case float64:
		return lua.LNumber(value)
	case int64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		table := state.CreateTable(len(value), 0)
		for _, child := range value {
			table.Append(luaValue(state, child))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(value))
		for key, child := range value {
			table.RawSetString(key, luaValue(state, child))
		}
		return table
	default:
		return lua.LNil
	}
}
