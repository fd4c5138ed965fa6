// Command gitops_health computes the health of objects as GitOps tools do. It reads a JSON array of requests, each with
// an object and an Argo CD health script, and writes an array of results: the kstatus that Flux uses, computed by its
// own library, and the health of Argo CD, computed by the Lua engine that Argo CD uses, with the same Lua libraries
// open.
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

type request struct {
	Object map[string]any `json:"object"`
	Script string         `json:"script"`
}

type result struct {
	Kstatus string `json:"kstatus"`
	Argo    health `json:"argo"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	var requests []request
	decoder := json.NewDecoder(os.Stdin)
	if err := decoder.Decode(&requests); err != nil {
		log.Fatalf("reading the requests: %v", err)
	}
	results := make([]result, 0, len(requests))
	for _, request := range requests {
		results = append(results, result{Kstatus: kstatus(request.Object), Argo: argo(request)})
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
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

// integers converts the numbers of encoding/json to int64, as an unstructured object has them.
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

func argo(request request) health {
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
	state.SetGlobal("obj", luaValue(state, request.Object))
	if err := state.DoString(request.Script); err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	text, err := luajson.Encode(state.Get(-1))
	if err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	var computed health
	if err := json.Unmarshal(text, &computed); err != nil {
		return health{Status: "error", Message: err.Error()}
	}
	return computed
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
